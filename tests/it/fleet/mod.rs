//! A fleet of browsers walks through an application at random, and an oracle checks every response.
//!
//! Several browsers, each with one jar of cookies and several tabs, of three users: their requests overlap, and a browser takes
//! cookies in the order in which responses come. They read, write, log in, with and without a `Login`, switch users, rotate, log
//! out, here and everywhere, end other sessions by their handles; wait in the handler until others are answered, or are held back
//! there until their IDs count no more; leave before, during and after the handler; save and then fail; panic. Thieves try every
//! cookie that there ever was, forged ones, ones under the other name, and two at once; and they plant theirs in the browsers of
//! others. It goes to two servers on one store: within the test, on stores whose calls take a while at random and fail now and
//! then; and as two processes on a Redis that keeps what it has acknowledged, all of which are killed, frozen and cut off. Where
//! IDs are encrypted there is a third server, which lacks the key.
//!
//! # What the oracle knows
//!
//! Of two requests one is *before* the other if it was answered before the other was sent. What a request does is sure from its
//! answer on; or not done, if the answer says so; or maybe done, at any time after it was sent, if the answer was lost or is
//! a 503. A response is wrong if it fits none of the orders that this leaves open:
//!
//! * An ID leads to its own session, with its own user, handle and data, or nowhere (3, 6, 12). It counts under the name of its
//!   kind, and a visitor's only if no user's cookie leads to a session, or to one in which it was superseded. Two of two users lead
//!   nowhere, one of them that is dead does not hide the other (15). What is written with them is dropped; a login with them is a
//!   new session, takes nothing along, and ends those that they lead to.
//! * It leads nowhere after a sign-out, a clear, a revocation, a login or a `clear_others` that ended its session or gave it a new
//!   ID, whatever was under way (4, 7, 8); nor when the grace is over since the rework that replaced it was answered (6), or when
//!   its holder has signed in to another session with a `Login`.
//! * A counter is no less than what was sure before, and no more than what may be since; the same for names, and for a value that
//!   all write (5). Each `save` that says yes makes another number of it. `save` says that a session is gone only if somebody may
//!   have ended it. What a failed response, or one that was too large, has written is not there (17).
//! * A login gives another ID. By the session of the same user it is in place: the record and its handle stay, and it needs the
//!   newest ID of a session that is there; with a `Login` it is another session if that is not so. Any other one has another
//!   handle. It takes along what was sure to be in the session before; one of another user leaves nothing to it. A rework keeps the
//!   handle, and rotates an ID once, unless four IDs are in their grace (6).
//! * A switch of user needs the newest ID of a session that is there. A login that was known to wait in its handler when a clear
//!   of its user was sent is refused, or ended by it (4, 8).
//! * `clear_others` needs the newest ID, gives a new one in place, and ends all others; refused, it ends nothing. `delete` and
//!   `clear` count with an ID that was rotated or superseded a moment ago, and with no other (8).
//! * A 401 has a reason: an ID that another one may have replaced, a session that may have ended, a user who may have been cleared.
//!   It changes nothing, except that a clear beside a login that was refused acts.
//! * A process that lacks the key of an encrypted ID finds nobody, ends nothing, and answers a sign-out with a 401 (9).
//! * 200 for a `delete` means that nothing lives under that name, 200 for a `clear` with a user's ID that all of the user's have
//!   ended.
//! * A list has every session that was there throughout, none that had ended, and nobody else's; `revoke` says true for none but
//!   those, and false for none that is live throughout (8). A session that nobody was told of is one that a login made whose answer
//!   was lost, or is under way.
//! * A cookie is set by a login, a `clear_others`, a rotation and a first write, always; and then only (2, 10); never by a handler
//!   that reads, nor for who holds what a login has replaced (2, 7), and under the name of its kind, the user's first. The user's
//!   is removed by a sign-out that ended a user's session, and by nothing else; the visitor's with it, by a login, and by a sign-out
//!   of its own session (9); no other one is, and none by a response of ours. With it goes `no-store`; with everything that looked
//!   at the session, `Vary: Cookie`. No ID is given out twice.
//! * 503 says when to come back, is never answered where nothing is made to fail, nor ever to who needs no store (1, 9).
//! * A sign-out counts also with a response that fails, and when the handler panicked or the client left after it was recorded (16).
//! * Every request is answered, or its connection closed (16).
//!
//! In the end, when all is quiet, all cookies and lists are looked at once more, all users are cleared, and nothing is left.
//!
//! # When nobody asked for a sign-out
//!
//! An ID must lead to its session, unless one of these was sent before the answer came:
//!
//! * a request that ends the session or gives it a new ID, and of which it is not known that it did not: also a login or a clear
//!   whose answer was lost;
//! * a rework that came with this very ID, sure or maybe, as soon as the grace may be over since that was *sent*. Of the new ID only
//!   its response tells: if that is lost, the browser is signed out when the grace ends.
//!
//! So a browser whose jar leads nowhere has asked for it, has lost the response to a login or a rotation, or has got the response to
//! a rotation later than that to a login which overlapped it. The order of responses is not the server's.
//!
//! # What is not in here
//!
//! Idle times, deadlines and bounds (18, 19), records that cannot be read (11), logs (13), options (14): other tests have them.
//!
//! Of a session that a lost login made, only user and handle are checked. As long as a login is under way, its session may already
//! be listed, and its data follow the session before. Between requests that overlap, both orders are right; and both outcomes of
//! a login, if its user was cleared while its call was on its way to the store. What becomes of a login with a sign-out beside it
//! that is refused, or whose answer is lost, is left open, except where nothing but a rotation can have refused it. Several cookies
//! of one name do not rotate, and sign out nobody beside a login.

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

use jam_session::Keyring;
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
        let faults = matches!(sabotage, Sabotage::LoadsNothing | Sabotage::FailuresRemoveCookies);
        let caught = (0..200).find_map(|seed| {
            let keyring = (sabotage == Sabotage::ForeignCookiesAreNone).then(|| Keyring::generate().unwrap());
            let options = Options { sabotage: Some(sabotage), faults, keyring, ..options(5000 + seed) };
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
    let oracle = Oracle::new(grace, !options.faults);
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
    }
}

const SIZE: Size = Size { browsers: 3, tabs: 3, steps: 60 };
