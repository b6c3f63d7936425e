//! Messages that are duplicated, late or lost between client and server.

use std::{cell::Cell, sync::Arc, time::Duration};

use jam_session::{
    Backend, By, Clear, Cleared, Created, ErrorKind, Outcome, Record, RecordId, RedisBackend, RedisSessions, Sessions,
    Since, Terms,
};
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    faults::{brief, in_time_or_none, is_too_slow, recovered},
    harness::{binaries, connected, patient},
    process::{Process, until},
    proxy::Proxy,
    wire::{Reply, Wire},
};
use crate::store::{Plain, eventually, in_time, lasting, name};

/// A server, and a proxy before it.
struct Road {
    server: Process,
    proxy: Proxy,
    sessions: RedisSessions,
}

impl Road {
    async fn to(server: Process) -> Self {
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        Self { server, proxy, sessions }
    }

    fn backend(&self) -> &RedisBackend {
        self.sessions.backend()
    }

    /// Delivers what was said last, or what `said` holds, again. Gives the code that the script answers.
    fn deliver(&self, said: &[u8]) -> i64 {
        match Wire::connect(&self.server.address).unwrap().send(said).unwrap() {
            // The time alone: the common path of an update.
            Reply::Number(_) => 1,
            answer => answer.list()[0].number(),
        }
    }
}

async fn roads() -> Vec<Road> {
    let mut roads = Vec::new();
    for binary in binaries() {
        roads.push(Road::to(Process::start(&binary, &[])).await);
    }
    roads
}

fn both() -> [RecordId; 2] {
    [of(owner("ada"), "one"), anonymous("one")]
}

fn ended(version: i64, id: RecordId) -> Record {
    lasting(Duration::ZERO, record(id, version, "out"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_delivered_twice_around_its_end_revives_nothing() {
    for road in roads().await {
        let backend = road.backend();
        for (id, end) in both().into_iter().flat_map(|id| (0..5).map(move |end| (id, end))) {
            let ttl = if end == 4 { Duration::from_millis(50) } else { HOUR };
            assert!(backend.creates(lasting(ttl, record(id, 1, "x"))).await.unwrap());
            let said = road.proxy.last_request();
            assert_eq!(road.deliver(&said), 1, "it was created");
            match end {
                0 => assert!(backend.delete(id).await.unwrap()),
                1 => assert_eq!(update(backend, 1, ended(2, id)).await, "done"),
                2 => backend.touch(id, 1, Duration::ZERO).await.unwrap(),
                3 if id.owner().is_some() => assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 1),
                3 => assert!(backend.delete(id).await.unwrap()),
                _ => while backend.load(id).await.unwrap().is_some() {},
            }
            let cleared = end == 3 && id.owner().is_some();
            // After a clear it is refused, because it does not name that, or is too late on a slow machine.
            let deliver = || match road.deliver(&said) {
                5 | -1 if cleared => {}
                code => assert_eq!((code, cleared), (1, false), "it was created, and has ended"),
            };
            deliver();
            assert!(backend.load(id).await.unwrap().is_none(), "end {end} of {id:?}");
            assert!(backend.list(owner("ada")).await.unwrap().is_empty());
            // Its name is free, and what is said again then is still known.
            assert!(backend.creates(record(id, 3, "new")).await.unwrap());
            deliver();
            assert_eq!(payload(backend, id).await.as_deref(), Some("new"));
            road.server.ask(&["FLUSHALL"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_recognised_even_after_foreign_writes() {
    for road in roads().await {
        let backend = road.backend();
        for id in both() {
            assert!(backend.creates(record(id, 1, "first")).await.unwrap());
            let created = road.proxy.last_request();
            assert_eq!(update(backend, 1, record(id, 2, "mine")).await, "done");
            let said = road.proxy.last_request();
            for version in 2..9 {
                assert_eq!(update(backend, version, record(id, version + 1, "theirs")).await, "done");
                assert_eq!(road.deliver(&said), 1, "done, {} writes ago", version - 1);
                assert_eq!(payload(backend, id).await.as_deref(), Some("theirs"));
            }
            // After more of them it is a conflict: never a second write.
            assert_eq!(update(backend, 9, record(id, 10, "theirs")).await, "done");
            assert_eq!(road.deliver(&said), 2);
            assert_eq!(road.deliver(&created), 1, "that it was created is never forgotten");
            assert_eq!(payload(backend, id).await.as_deref(), Some("theirs"));
            assert!(backend.delete(id).await.unwrap());
            assert_eq!(road.deliver(&said), 0);
            assert_eq!(road.deliver(&created), 1, "and has ended");
            assert!(backend.load(id).await.unwrap().is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_delivered_twice_spares_who_came_after() {
    for road in roads().await {
        let backend = road.backend();
        for members in [0, 3] {
            for at in 0..members {
                assert!(backend.creates(record(of(owner("ada"), &format!("s{at}")), 1, "x")).await.unwrap());
            }
            assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), members);
            // The clear, or what tidies up behind it.
            let said = road.proxy.last_request();
            let after = of(owner("ada"), &format!("after{members}"));
            assert!(backend.creates(record(after, 1, "x")).await.unwrap());
            assert_eq!(road.deliver(&said), 1);
            assert!(backend.load(after).await.unwrap().is_some());
            assert!(backend.delete(after).await.unwrap());
        }
        // Not even one that others came after.
        assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 0);
        let said = road.proxy.last_request();
        for _ in 0..7 {
            assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 0);
        }
        let after = of(owner("ada"), "after");
        assert!(backend.creates(record(after, 1, "x")).await.unwrap());
        assert_eq!(road.deliver(&said), 1);
        assert!(backend.load(after).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_by_a_record_delivered_twice_ends_nothing_more() {
    for road in roads().await {
        let (backend, ada) = (road.backend(), owner("ada"));
        for keep in [true, false] {
            let (by, other) = (of(ada, &format!("by{keep}")), of(ada, &format!("other{keep}")));
            assert!(backend.creates(record(by, 1, "x")).await.unwrap());
            assert!(backend.creates(record(other, 1, "x")).await.unwrap());
            let clear = Clear { name: name(), by: Some(By { id: by, version: 1, keep }) };
            let Ok(Cleared::Done(ended)) = backend.clear(ada, clear).await else { panic!("it is there") };
            // What tidies up behind it may have been said since.
            let said = road.proxy.last_request();
            let after = of(ada, &format!("after{keep}"));
            assert!(backend.creates(record(after, 1, "x")).await.unwrap());
            if keep {
                assert_eq!(update(backend, 1, record(by, 2, "y")).await, "done");
            }
            assert_eq!(road.deliver(&said), 1, "it was done");
            for _ in 0..2 {
                let Ok(Cleared::Done(again)) = backend.clear(ada, clear).await else { panic!("it was done") };
                assert_eq!((again, backend.load(after).await.unwrap().is_some()), (ended, true));
            }
            assert_eq!(backend.load(by).await.unwrap().is_some(), keep);
            backend.clears(ada, None).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_delivered_twice_spares_who_came_after() {
    for road in roads().await {
        let backend = road.backend();
        for id in both() {
            assert!(backend.creates(record(id, 1, "x")).await.unwrap());
            assert!(backend.delete(id).await.unwrap());
            let said = road.proxy.last_request();
            assert!(backend.creates(record(id, 2, "y")).await.unwrap());
            assert_eq!(road.deliver(&said), 1, "it was ended");
            assert_eq!(payload(backend, id).await.as_deref(), Some("y"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_again() {
    for road in roads().await {
        let backend = road.backend();
        let lose = || {
            assert!(road.proxy.has_swallowed());
            road.proxy.swallow_next_answer();
        };
        for id in both() {
            lose();
            assert!(backend.creates(record(id, 1, "x")).await.unwrap());
            lose();
            assert_eq!(update(backend, 1, record(id, 2, "y")).await, "done");
            lose();
            assert_eq!(payload(backend, id).await.as_deref(), Some("y"));
            lose();
            backend.touch(id, 2, HOUR).await.unwrap();
            lose();
            assert!(backend.delete(id).await.unwrap());
            assert!(backend.creates(record(id, 3, "x")).await.unwrap());
            lose();
            assert_eq!(update(backend, 3, ended(4, id)).await, "done");
            lose();
            assert!(backend.load(id).await.unwrap().is_none());
        }
        for at in 0..3 {
            assert!(backend.creates(record(of(owner("ada"), &format!("s{at}")), 1, "x")).await.unwrap());
        }
        lose();
        assert_eq!(backend.list(owner("ada")).await.unwrap().len(), 3);
        lose();
        assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 3);
        assert!(road.proxy.has_swallowed());
    }
}

/// Where the server's time is not known, a script reads it with the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_the_first_load_is_asked_for_again() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        for id in both() {
            server.signal("KILL");
            let first = patient(RedisSessions::builder(proxy.uri())).lazy(true).connect().await.unwrap();
            server.run(&[]);
            let direct = connected(|| RedisSessions::builder(server.uri())).await;
            assert!(direct.backend().creates(record(id, 1, "x")).await.unwrap());
            // It opens the connection, once the pause after the failed attempt is over, and tells nothing of the time.
            let listed = in_time(async || first.backend().list(owner("grace")).await.ok()).await;
            assert!(listed.is_empty());
            proxy.swallow_next_answer();
            assert_eq!(payload(first.backend(), id).await.as_deref(), Some("x"));
            assert!(proxy.has_swallowed());
        }
    }
}

/// It was there, and the clear has counted it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_was_cleared_before_its_repeat_was_not_late() {
    for road in roads().await {
        let direct = connected(|| RedisSessions::builder(road.server.uri())).await;
        let (backend, id) = (road.backend(), of(owner("ada"), "one"));
        let terms = |retry| Terms { since: Some(Since::Age(HOUR / 10)), retry, ..Terms::default() };
        road.proxy.hold(true);
        road.proxy.swallow_next_answer();
        let ((), said) = tokio::join!(
            async {
                eventually(async || road.proxy.has_swallowed()).await;
                assert_eq!(direct.backend().clears(owner("ada"), None).await.unwrap(), 1);
                road.proxy.hold(false);
            },
            backend.create(record(id, 1, "x"), terms(false))
        );
        assert_eq!(unavailable(said.map(drop)), ErrorKind::Unavailable);
        let again = backend.create(record(id, 1, "x"), terms(true)).await;
        assert!(matches!(again, Ok(Created::Late)), "{again:?}");
        assert!(backend.load(id).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_late_does_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let direct = connected(|| RedisSessions::builder(server.uri())).await;
        for id in both() {
            for verb in ["create", "update", "logout", "touch", "delete", "clear"] {
                // A connection of its own each time: what is late is then all that it says.
                let late = brief(proxy.uri()).await;
                if verb != "create" {
                    assert!(direct.backend().creates(record(id, 1, "x")).await.unwrap());
                }
                let before = scripts_run(&server);
                proxy.freeze_all();
                // What a busy machine has not even sent by the time that it is given up cannot arrive.
                in_time(async || {
                    let trips = proxy.trips();
                    let said = say(late.backend(), verb, id).await;
                    assert_eq!(unavailable(said), ErrorKind::Unavailable, "{verb}");
                    (proxy.trips() > trips).then_some(())
                })
                .await;
                proxy.thaw();
                until("it has arrived", || scripts_run(&server) > before);
                let there = direct.backend().load(id).await.unwrap();
                match verb {
                    "create" => assert!(there.is_none()),
                    _ => {
                        let there = there.expect(verb);
                        assert_eq!((there.version, &there.payload[..]), (1, &b"x"[..]));
                        assert!(there.ttl <= HOUR);
                    }
                }
                server.ask(&["FLUSHALL"]);
            }
        }
    }
}

async fn say(backend: &RedisBackend, verb: &str, id: RecordId) -> jam_session::backend::Result<()> {
    match verb {
        "create" => backend.creates(record(id, 1, "late")).await.map(drop),
        "update" => backend.updates(1, record(id, 2, "late")).await.map(drop),
        "logout" => backend.updates(1, ended(2, id)).await.map(drop),
        "touch" => backend.touch(id, 1, HOUR * 2).await,
        "delete" => backend.delete(id).await.map(drop),
        // Of an anonymous one there is none.
        _ => backend.clears(id.owner().unwrap_or(owner("ada")), None).await.map(drop),
    }
}

/// What the module makes of a backend's error.
fn unavailable(said: jam_session::backend::Result<()>) -> ErrorKind {
    let error = said.expect_err("it should not have been answered");
    match error.downcast::<jam_session::Error>() {
        Ok(own) => own.kind(),
        Err(_) => ErrorKind::Unavailable,
    }
}

pub fn scripts_run(server: &Process) -> u64 {
    let calls = |command: &str| {
        let stats = server.address.info("commandstats", command);
        stats.strip_prefix("calls=").and_then(|rest| rest.split(',').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    calls("cmdstat_evalsha") + calls("cmdstat_eval")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_lost_each_other_write_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let script = concat!(
            include_str!("../../../src/stores/redis/time.lua"),
            include_str!("../../../src/stores/redis/record.lua"),
            include_str!("../../../src/stores/redis/create.lua")
        );
        let value = format!("\u{2}\u{0}\u{0}{:013}12345678{:010}x", 1, 1);
        let now: i64 = server.ask(&["TIME"]).list()[0].text().parse::<i64>().unwrap() * 1000;
        let window = "600000";
        for (not_after, code) in [(0, -1), (now - 60_000, -1), (now + 3_600_000, -1), (now + 300_000, 1)] {
            let not_after = not_after.to_string();
            let args = ["12345678", "sid", &value, "", "1000000", "", "", "", ""];
            let answer = server.ask(&[&["EVAL", script, "1", "k", &not_after, window], &args[..]].concat());
            let Reply::List(answer) = answer else { panic!("{answer:?}") };
            assert_eq!(answer[0].number(), code);
            assert!((answer[1].number() - now).abs() < 300_000);
            assert_eq!(server.ask(&["EXISTS", "k"]).number(), i64::from(code == 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_write_learns_the_time_by_itself() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        server.signal("STOP");
        let sessions: Sessions<RedisBackend> = RedisSessions::builder(server.uri()).lazy(true).connect().await.unwrap();
        server.signal("CONT");
        until("it answers", || !server.ask(&["PING"]).is_error());
        // Nothing of the server was heard when this was connected.
        let id = anonymous("one");
        while sessions.backend().creates(record(id, 1, "x")).await.is_err() {}
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_that_cannot_know_is_an_error() {
    for road in roads().await {
        let direct = connected(|| RedisSessions::builder(road.server.uri())).await;
        for id in both() {
            // With and without versions before the one that was expected.
            for (before, foreign) in [0, 3, 20].into_iter().flat_map(|before| (0..=9).map(move |n| (before, n))) {
                let case = format!("{foreign} foreign writes, {before} before, {id:?}");
                // The answer is lost: it is in.
                let (said, count) = repeat(&road, &direct, id, before, foreign, Lost::Answer).await;
                assert_eq!(said, if foreign <= 7 { "done" } else { "unknown" }, "{case}");
                assert_eq!(count, before + foreign + 1, "{case}");
                // The request is lost: it is not in, unless the repeat could still write it.
                let (said, count) = repeat(&road, &direct, id, before, foreign, Lost::Request).await;
                let expected = ["done", "conflict", "unknown"][usize::from(foreign > 0) + usize::from(foreign > 7)];
                assert_eq!(said, expected, "{case}");
                assert_eq!(count, before + foreign + i64::from(foreign == 0), "{case}");
            }
            // A server that has forgotten the script is asked three times, and the first is not forgotten.
            let (said, count) = repeat(&road, &direct, id, 0, 9, Lost::AnswerAndScripts).await;
            assert_eq!((said, count), ("unknown", 10), "{id:?}");
            let (said, _) = repeat(&road, &direct, id, 0, 9, Lost::AnswerAndRecord).await;
            assert_eq!(said, "gone", "{id:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_lost_is_a_conflict_however_old() {
    for road in roads().await {
        let backend = road.backend();
        for id in both() {
            assert!(backend.creates(record(id, 1, "0")).await.unwrap());
            for version in 1..20 {
                assert_eq!(update(backend, version, record(id, version + 1, "x")).await, "done");
            }
            assert_eq!(update(backend, 1, record(id, 100, "y")).await, "conflict");
            road.server.ask(&["SCRIPT", "FLUSH"]);
            assert_eq!(update(backend, 1, record(id, 100, "y")).await, "conflict", "nor is an unknown script a loss");
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Lost {
    Request,
    Answer,
    AnswerAndScripts,
    AnswerAndRecord,
}

/// Adds one, loses that, and lets others add theirs before the repeat arrives. Gives what became of it, and the count.
async fn repeat(
    road: &Road,
    direct: &RedisSessions,
    id: RecordId,
    before: i64,
    foreign: i64,
    lost: Lost,
) -> (&'static str, i64) {
    const MINE: i64 = 1000;
    // All of that takes no longer than one operation may take, or it is tried again.
    in_time(async || {
        let others = direct.backend();
        let _ = others.delete(id).await.unwrap();
        road.server.ask(&["FLUSHALL"]);
        assert!(others.creates(record(id, 1, "0")).await.unwrap());
        let add = async |version| {
            let there = others.load(id).await.unwrap().unwrap();
            let next = record(id, version, &(count_of(&there) + 1).to_string());
            assert_eq!(update(others, there.version, next).await, "done");
        };
        for version in 0..before {
            add(2 + version).await;
        }
        // A connection that there is, and the only thing that is lost.
        let there = in_time_or_none(road.backend().load(id).await)?.unwrap();
        road.proxy.hold(true);
        match lost {
            Lost::Request => road.proxy.swallow_next_request(),
            _ => road.proxy.swallow_next_answer(),
        }
        let mine = record(id, MINE, &(count_of(&there) + 1).to_string());
        let is_answered = Cell::new(false);
        let ((), said) = tokio::join!(
            async {
                while !road.proxy.has_swallowed() && !is_answered.get() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                for version in 0..foreign {
                    add(MINE + 1 + version).await;
                }
                match lost {
                    Lost::AnswerAndScripts => drop(road.server.ask(&["SCRIPT", "FLUSH"])),
                    Lost::AnswerAndRecord => assert!(others.delete(id).await.unwrap()),
                    _ => {}
                }
                road.proxy.hold(false);
            },
            async {
                let said = road.backend().updates(there.version, mine).await;
                is_answered.set(true);
                said
            }
        );
        let said = match said {
            Err(error) if is_too_slow(&error) => return None,
            Ok(Outcome::Done) => "done",
            Ok(Outcome::Gone) => "gone",
            Ok(Outcome::Conflict(_)) => "conflict",
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(error.to_string().contains("it is not known whether"), "{error}");
                assert_eq!(unavailable(Err(error)), ErrorKind::Unavailable);
                "unknown"
            }
        };
        Some((said, others.load(id).await.unwrap().map_or(0, |there| count_of(&there))))
    })
    .await
}

fn count_of(there: &Record) -> i64 {
    std::str::from_utf8(&there.payload).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_each_increment_counts_once_although_answers_are_lost() {
    let Some(binary) = binaries().into_iter().next() else { return };
    for (writers, steps, pace) in [(8, 75, Pace::InRounds), (10, 100, Pace::Free)] {
        let server = Process::start(&binary, &[]);
        let Increments { done, unknown, slow } = increment(&server, writers, steps, pace).await;
        let direct = connected(|| RedisSessions::builder(server.uri())).await;
        let count = count_of(&direct.backend().load(of(owner("ada"), "one")).await.unwrap().unwrap());
        assert!((done..=done + unknown).contains(&count), "{count}: {done} were done, of {unknown} nobody knows");
        if pace == Pace::InRounds && slow == 0 {
            assert_eq!(
                (done, unknown),
                (writers * steps, 0),
                "no more than seven others write before it is asked again"
            );
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// Each writer has added one before any adds another. In every third round an answer is lost.
    InRounds,
    /// Nobody waits for anybody, until enough answers were lost.
    Free,
}

#[derive(Default)]
struct Increments {
    done: i64,
    /// Of how many it is not known whether they were done.
    unknown: i64,
    /// How many of these a machine was too slow for.
    slow: i64,
}

/// Many writers, whose answers are lost now and then.
async fn increment(server: &Process, writers: i64, steps: i64, pace: Pace) -> Increments {
    let proxy = Arc::new(Proxy::before(&server.address).await);
    let id = of(owner("ada"), "one");
    // Two processes, as it were: each with a connection of its own.
    let mut processes = Vec::new();
    for _ in 0..2 {
        processes.push(connected(|| RedisSessions::builder(proxy.uri())).await);
    }
    assert!(processes[0].backend().creates(record(id, 0, "0")).await.unwrap());
    let loser = Arc::clone(&proxy);
    let losing = (pace == Pace::Free).then(|| {
        tokio::spawn(async move {
            loop {
                loser.swallow_next_answer();
                // Not so soon that it is the repeat whose answer is lost.
                let lost = loser.trips();
                while loser.trips() < lost + 20 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    });
    let round = Arc::new(Barrier::new(usize::try_from(writers).unwrap()));
    let mut writing = JoinSet::new();
    for writer in 0..writers {
        let sessions = processes[usize::from(writer % 2 == 0)].clone();
        let (proxy, round) = (Arc::clone(&proxy), Arc::clone(&round));
        writing.spawn(async move {
            let mut all = Increments::default();
            for step in 1.. {
                let is_enough = pace == Pace::InRounds || proxy.connections() > 20;
                if step > steps && is_enough {
                    break;
                }
                if pace == Pace::InRounds && round.wait().await.is_leader() && step % 3 == 0 {
                    proxy.swallow_next_answer();
                }
                let mut there = loop {
                    if let Ok(there) = sessions.backend().load(id).await {
                        break there.expect("it is there");
                    }
                };
                loop {
                    let next = record(id, 1_000_000 * (writer + 1) + step, &(count_of(&there) + 1).to_string());
                    match sessions.backend().updates(there.version, next).await {
                        Ok(Outcome::Done) => all.done += 1,
                        Ok(Outcome::Conflict(current)) => {
                            there = current;
                            continue;
                        }
                        Ok(other) => panic!("it is {other:?}"),
                        // It may be in. Whoever added it again would not know how often it is.
                        Err(error) => {
                            all.unknown += 1;
                            all.slow += i64::from(is_too_slow(&error));
                        }
                    }
                    break;
                }
            }
            all
        });
    }
    let all = writing.join_all().await;
    if let Some(losing) = losing {
        losing.abort();
    }
    assert!(proxy.connections() > 20, "few answers were lost");
    let sum = |of: fn(&Increments) -> i64| all.iter().map(of).sum();
    Increments { done: sum(|of| of.done), unknown: sum(|of| of.unknown), slow: sum(|of| of.slow) }
}
