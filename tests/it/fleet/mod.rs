//! A fleet of browsers walks through an application at random, and an oracle checks every response.
//!
//! Several browsers of three users send overlapping requests. Each has one cookie jar and several tabs, and takes cookies in the
//! order in which responses arrive. The requests read, write, log in (with and without a `Login`), switch users, rotate, log out
//! (here or everywhere), and end other sessions by their handles. They wait in the handler for other requests, or are held back
//! until their IDs are no longer valid. They disconnect before, during and after the handler, save and then fail, and panic.
//!
//! Thieves try every cookie that ever existed, forged ones, ones under the other cookie's name, and two at once. They also plant
//! their cookies in other browsers.
//!
//! The requests go to two servers on one store. Inside the test, the store's calls take a random time and sometimes fail. With
//! processes, the servers share a Redis that keeps what it acknowledged, and all of them are killed, frozen and disconnected.
//! If IDs are encrypted, there is a third server without the key.
//!
//! # What the oracle checks
//!
//! One request is *before* another if it was answered before the other was sent. The effect of a request is sure once it is
//! answered, or not done if the answer says so. If the answer was lost or is a 503, the effect may have happened at any time
//! after the request was sent. A response is wrong if it fits none of the orders that remain possible. (Numbers are promises.)
//!
//! * **IDs.** An ID leads to its own session, with its own user, handle and data, or nowhere (3, 6, 12). It counts only under
//!   the cookie name of its kind. A visitor's ID counts only if no user's cookie leads to a session, or to one in which it was
//!   superseded. IDs of two users together lead nowhere, but an ID without a session does not hide another one (15). Writes
//!   with several such IDs are dropped. A login with them makes a new session, takes no data along, and ends the sessions that
//!   they lead to. More than three cookies lead nowhere, and a sign-out with them is a 401.
//! * **Ended IDs.** An ID leads nowhere after a sign-out, a clear, a revocation, a login or a `clear_others` that ended its
//!   session or gave it a new ID, whatever was in flight (4, 7, 8). It also leads nowhere once the grace after an answered
//!   rework is over (6), or once its holder has signed in to another session with a `Login`.
//! * **Data.** A counter is at least what was sure before, and at most what is possible since. The same holds for names, and
//!   for a value that all requests write (5). Each successful `save` makes the number another one. `save` reports that a
//!   session is gone only if some request may have ended it. Writes of a failed or too large response are not there (17).
//! * **Logins.** A login gives another ID. On a session of the same user it keeps the record and the handle, which needs the
//!   newest ID of a live session; with a `Login`, it otherwise makes another session. Every other login makes another handle.
//!   It takes along all data that was sure to be in the previous session, but none of another user. A login that was known to
//!   wait in its handler when a clear of its user was sent is refused, or ended by the clear. Switching users needs the newest
//!   ID of a live session (4, 8).
//! * **Second tries.** A handler whose `save` was `Unavailable` may call it once more. If that succeeds, everything is there
//!   exactly once, and the cookie of a login leads to its session. If it does not, it is not known what the first try did (5).
//! * **Kept logins.** A `Login` that an earlier request took is refused, or what it made has ended, if its user was cleared
//!   after it was taken (22).
//! * **Limits.** A list never contains more sessions than the limit, except those from logins without a limit: a switch of user
//!   with a plain key, and a login beside a clear. A login ends no more sessions than necessary, and those that the store has
//!   heard of longest ago, as far as the writes tell. If the limit refuses, a login is answered with 409 if the user has that
//!   many sessions, and only then; that changes nothing (20).
//! * **Rotations.** A rework keeps the handle, and rotates an ID once, unless four IDs are within their grace (6).
//! * **Sign-outs.** `clear_others` needs the newest ID, gives a new one in place, and ends all others; if it is refused,
//!   nothing ends. It is refused with the IDs of two users. With several of one user it acts by the one that counts, and answers
//!   401 after that if another one may lead to a session that lives on. `delete` and `clear` work with an ID that was rotated or
//!   superseded a moment ago, but with no older one (8). After a 200 for a `delete`, no session has that name. After a 200 for
//!   a `clear` with a user's ID, all sessions of the user have ended.
//! * **401.** It has a reason: an ID that may have been replaced, a session that may have ended, or a user who may have been
//!   cleared. It changes nothing, except that a clear beside a refused login takes effect.
//! * **Missing keys.** A process without the key of an encrypted ID finds no user, ends nothing, and answers a sign-out with
//!   401 (9).
//! * **Lists.** A list contains every session that was live throughout, none that had ended, and no other user's. `revoke`
//!   returns true only for those, and never false for one that is live throughout (8). An unknown session can only come from a
//!   login whose answer was lost or that is pending.
//! * **Cookies.** A login, a `clear_others`, a rotation and a first write always set a cookie, and nothing else does (2, 10).
//!   A handler that only reads never sets one, and neither does a request whose ID a login has replaced (2, 7). Each cookie
//!   has the name of its kind, the user's first. The user's cookie is removed only by a sign-out that ended a user's session.
//!   The visitor's is removed together with it, by a login, and by a sign-out of its own session (9). Our own error responses
//!   remove none. Responses with a cookie have `no-store`, and responses that used the session have `Vary: Cookie`. No ID is
//!   issued twice.
//! * **503.** It says when to retry. It is never the answer if no fault was injected, or to a request that needs no store (1, 9).
//! * **Failures.** A recorded sign-out takes effect even if the response fails, the handler panics or the client disconnects
//!   (16). Every request is answered, or its connection is closed (16).
//!
//! At the end, when no request is pending, all cookies and lists are checked once more, all users are cleared, and no session is
//! left.
//!
//! # Unexpected sign-outs
//!
//! An ID must lead to its session, unless one of these was sent before the answer came:
//!
//! * a request that may have ended the session or given it a new ID, including a login or a clear whose answer was lost;
//! * a rework with this very ID, sure or maybe, if the grace may be over since it was *sent*. Only its response contains the
//!   new ID; if it is lost, the browser is signed out when the grace ends.
//!
//! So if a browser is signed out, it asked for that, or it lost the response to a login or a rotation, or it got the response
//! to a rotation after that to an overlapping login. The server cannot control the order of responses.
//!
//! # What is not checked here
//!
//! Other tests cover idle timeouts, absolute timeouts and limits (18, 19), records that cannot be read (11), logs (13) and
//! options (14).
//!
//! With a limit, reading does not count as use, because no response shows when the store is told.
//!
//! For the session of a lost login, only the user and the handle are checked. While a login is pending, its session may
//! already be listed, and its data may follow the previous session. For overlapping requests both orders are right, and so are
//! both outcomes of a login whose user was cleared while its call was on its way to the store. The outcome of a login is left
//! open if a sign-out in the same request is refused or its answer is lost, unless only a rotation can have refused it.
//! Requests with several cookies of one name do not rotate, and do not combine a sign-out with a login.

mod app;
mod ask;
mod oracle;
#[cfg(feature = "redis")]
mod processes;
mod sabotage;
mod sim;
mod walk;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use jam_session::{Keyring, Limit};
use tokio::task::LocalSet;

use crate::random::Random;

use self::{
    oracle::Oracle,
    sabotage::{ALL, Sabotage},
    sim::{Options, Sim},
    walk::{Size, Walk},
};

type Tally = BTreeMap<&'static str, u64>;

#[test]
fn on_memory_no_response_is_wrong() {
    each_seed("memory", 0..10, |seed| within(Options { slow: seed % 3 == 2, ..options(seed) }));
}

#[test]
fn on_memory_that_fails_now_and_then_no_response_is_wrong() {
    each_seed("failing memory", 1000..1008, |seed| {
        within(Options { faults: true, slow: seed % 2 == 1, ..options(seed) })
    });
}

#[test]
fn with_a_keyring_no_response_is_wrong() {
    let keyring = Keyring::generate().unwrap();
    let sealed =
        |seed| Options { keyring: Some(keyring.clone()), faults: seed % 2 == 1, slow: seed % 3 == 0, ..options(seed) };
    each_seed("sealed memory", 2000..2004, |seed| within(sealed(seed)));
}

#[test]
fn on_a_json_file_no_response_is_wrong() {
    each_seed("JSON file", 3000..3002, |seed| within(Options { json: true, faults: seed % 2 == 1, ..options(seed) }));
}

#[test]
fn under_a_limit_of_sessions_no_response_is_wrong() {
    each_seed("limit", 6000..6012, |seed| {
        let most = 1 + (seed / 2) as usize % 3;
        let limit = if seed % 2 == 0 { Limit::from(most) } else { Limit::refuse(most) };
        let (json, faults, slow) = (seed % 12 == 4, seed % 3 == 2, seed % 5 == 1);
        within(Options { limit, json, faults, slow, ..options(seed) })
    });
}

#[test]
#[cfg(feature = "redis")]
fn through_two_processes_and_a_redis_that_are_killed_at_random_no_response_is_wrong() {
    if crate::redis::harness::binary().is_some() {
        each_seed("processes", 4000..4002, |seed| {
            let walk = processes::walk_through_processes(seed, Size { steps: 40, ..SIZE }).unwrap();
            let oracle = walk.oracle.borrow();
            (oracle.wrong.clone(), oracle.tally.clone())
        });
    }
}

#[test]
fn the_oracle_notices_whatever_is_broken_on_purpose() {
    let mut missed = Vec::new();
    for sabotage in ALL {
        let faults = matches!(
            sabotage,
            Sabotage::LoadsNothing | Sabotage::FailuresRemoveCookies | Sabotage::RemovesRetriedLogins
        );
        let caught = (0..200).find_map(|seed| {
            let keyring = (sabotage == Sabotage::ForeignCookiesAreNone).then(|| Keyring::generate().unwrap());
            let limit = sabotage.limit();
            let options = Options { sabotage: Some(sabotage), faults, keyring, limit, ..options(5730 + seed) };
            within(options).0.map(|wrong| (seed, wrong))
        });
        match caught {
            Some((seed, wrong)) => println!("{sabotage:?}, seed {seed}: {}", wrong.lines().next().unwrap()),
            None => missed.push(sabotage),
        }
    }
    assert!(missed.is_empty(), "{missed:?} went unnoticed");
}

/// Runs the walk of each of these seeds; and if `SESSION_TEST_LONG` says for how many seconds, of others until they are over.
fn each_seed(what: &str, fixed: Range<u64>, walk: impl Fn(u64) -> (Option<String>, Tally)) {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let long = std::env::var("SESSION_TEST_LONG").ok();
    let long = long.map(|seconds| Duration::from_secs(seconds.parse().expect("SESSION_TEST_LONG is not a number")));
    let fixed_until = fixed.end;
    let mut tally = Tally::new();
    let run = |seed, tally: &mut Tally| {
        let (wrong, counts) = walk(seed);
        for (what, count) in counts {
            *tally.entry(what).or_default() += count;
        }
        if let Some(wrong) = wrong {
            panic!("{what}, seed {seed}: {wrong}");
        }
    };
    fixed.for_each(|seed| run(seed, &mut tally));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut random = Random(now.as_nanos() as u64);
    let mut others = 0;
    while long.is_some_and(|long| BEGAN.elapsed() < long) {
        run(fixed_until + random.next() / 2, &mut tally);
        others += 1;
    }
    // A walk that goes nowhere proves nothing. What happens on a walk through processes depends on how quick they are: what
    // none of the seeds has met by now, one of the next will.
    let all = [
        "found",
        "logins",
        "logins in place",
        "logouts",
        "other sessions ended",
        "refused",
        "rotations",
        "revoked",
        "lists",
        "lost",
        "old IDs within the grace",
    ];
    for seed in fixed_until..fixed_until + 100 {
        if all.iter().all(|what| tally.contains_key(what)) {
            break;
        }
        run(seed, &mut tally);
    }
    println!("{what}: {others} seeds more; {tally:?}");
    for what in all {
        assert!(tally.contains_key(what), "no {what}");
    }
}

fn within(options: Options) -> (Option<String>, Tally) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seed = options.seed;
    let is_sealed = options.keyring.is_some();
    let grace = u64::try_from(options.grace.as_millis()).unwrap();
    let oracle = Oracle::new(grace, !options.faults, options.limit);
    let walk = LocalSet::new().block_on(&runtime, async move {
        let walk = Walk::new(Sim::new(options).await, oracle, SIZE, is_sealed);
        walk.run(SIZE, &mut Random(seed)).await;
        walk
    });
    let oracle = walk.oracle.borrow();
    (oracle.wrong.clone(), oracle.tally.clone())
}

fn options(seed: u64) -> Options {
    Options {
        seed,
        json: false,
        faults: false,
        slow: false,
        keyring: None,
        sabotage: None,
        grace: Duration::from_secs(10),
        limit: Limit::None,
    }
}

const SIZE: Size = Size { browsers: 3, tabs: 3, steps: 60 };
