//! Tests of logins on terms (a limit, a mark, and a visitor's record that is left), and of scans and counts.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    backend::{JsonBackend, JsonFile},
    batch::FileBounds,
    journal::Durability,
    queue::{Op, OpReply},
    sim::World,
    table::{Lookup, SOME, read},
    tests::{Ask, Hooked, Rig, hooked},
};
use crate::{
    backend::{
        Backend, Outcome,
        clear::{Clear, Cleared},
        scan::Cursor,
        terms::{Created, Left, Limit, Since, Terms},
    },
    clock::Clock,
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
    stores::recent::TermsAt,
};

fn id(owner: Option<u8>, n: u64) -> RecordId {
    RecordId::new(owner.map(|owner| Owner::from([owner; 16])), Sid::parse(&format!("{n:022}")).unwrap())
}

/// The session of a user.
fn user(n: u64) -> RecordId {
    id(Some(1), n)
}

fn create(id: RecordId) -> Ask {
    Ask::Create(id, 1, 100_000, r#"{"a":1}"#.into())
}

fn limited(limit: impl Into<Limit>) -> Terms {
    Terms { limit: limit.into(), ..Terms::default() }
}

fn login(id: RecordId, terms: Terms) -> Op {
    let Op::Create { new, .. } = create(id).op() else { unreachable!() };
    Op::Create { new, terms: TermsAt::new(terms, || Duration::ZERO).into() }
}

fn ask(rig: &mut Rig, op: Op) -> Result<Created, Error> {
    rig.answers([op].into_iter()).remove(0).map(created)
}

fn created(reply: OpReply) -> Created {
    match reply {
        OpReply::Created(created) => created,
        other => panic!("{other:?}"),
    }
}

fn ended(created: Created) -> Vec<RecordId> {
    match created {
        Created::Done { ended, .. } => ended,
        other => panic!("{other:?}"),
    }
}

fn left(created: Created) -> Left {
    match created {
        Created::Done { left, .. } => left,
        other => panic!("{other:?}"),
    }
}

fn there(rig: &Rig) -> Vec<RecordId> {
    rig.contents().into_keys().collect()
}

fn rig(clock: &Clock) -> Rig {
    Rig::open(World::new(1), clock).1.unwrap()
}

#[test]
fn above_the_limit_the_one_heard_of_longest_ago_ends_whatever_was_read() {
    let mut rig = rig(&Clock::manual());
    for n in 0..3 {
        assert!(ended(ask(&mut rig, login(user(n), limited(3))).unwrap()).is_empty());
    }
    // Another user's, and a visitor's, which the limit does not concern.
    assert!(rig.batch(&[create(id(Some(2), 0)), create(id(None, 0))]).iter().all(Result::is_ok));
    assert!(matches!(read(&rig.writer.storage.table).load(user(1)), Lookup::Live(_)));
    let answers = rig.batch(&[Ask::Touch(user(0), 1, 100_000), Ask::Update(1, user(2), 2, 100_000, "{}".into())]);
    assert!(answers.iter().all(Result::is_ok));
    for (new, gone) in [(3, 1), (4, 0), (5, 2), (6, 3)] {
        assert_eq!(ended(ask(&mut rig, login(user(new), limited(3))).unwrap()), [user(gone)]);
    }
    assert_eq!(there(&rig).len(), 5);
    // It may have been lowered, even to none.
    assert_eq!(ended(ask(&mut rig, login(user(7), limited(2))).unwrap()), [user(4), user(5)]);
    assert_eq!(ended(ask(&mut rig, login(user(8), limited(0))).unwrap()), [user(6), user(7)]);
    assert_eq!(ended(ask(&mut rig, login(user(9), limited(100))).unwrap()), []);
    assert_eq!(
        there(&rig),
        [id(None, 0), user(8), user(9), id(Some(2), 0)]
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_limit_that_refuses_changes_nothing_and_expired_sessions_do_not_count() {
    let clock = Clock::manual();
    let mut rig = rig(&clock);
    assert!(rig.batch(&[create(user(0)), Ask::Create(user(1), 1, 1_000, "{}".into()), create(id(None, 0))])[2].is_ok());
    let before = (rig.contents(), rig.bytes());
    let terms = Terms { leaves: Some((id(None, 0), 1)), ..limited(Limit::refuse(2)) };
    assert!(matches!(ask(&mut rig, login(user(2), terms.clone())), Ok(Created::Full)));
    assert_eq!((rig.contents(), rig.bytes()), before);
    // The order of answers: that very record, too late, taken, full.
    let terms_of = |since| Terms { since, ..terms.clone() };
    let late = Some(Since::Age(Duration::from_secs(16 * 60)));
    assert!(matches!(ask(&mut rig, login(user(2), terms_of(late.clone()))), Ok(Created::Late)));
    let Op::Create { mut new, terms } = login(user(0), terms_of(late)) else { unreachable!() };
    new.version = 9;
    assert!(matches!(ask(&mut rig, Op::Create { new, terms }), Ok(Created::Late)));
    let Op::Create { mut new, terms } = login(user(0), limited(Limit::refuse(2))) else { unreachable!() };
    new.version = 9;
    assert!(matches!(ask(&mut rig, Op::Create { new, terms }), Ok(Created::Taken)));
    assert_eq!((rig.contents(), rig.bytes()), before);
    assert_eq!(ended(ask(&mut rig, login(user(0), limited(Limit::refuse(2)))).unwrap()), []);
    clock.advance(Duration::from_secs(1));
    assert_eq!(ended(ask(&mut rig, login(user(2), limited(Limit::refuse(2)))).unwrap()), []);
    // One of two: what has expired does not end again.
    assert_eq!(ended(ask(&mut rig, login(user(3), limited(2))).unwrap()), [user(0)]);
}

/// After a clean end, a kill, a power cut, and in a file that was compacted.
#[test]
fn which_session_was_heard_of_longest_ago_is_known_after_a_restart() {
    for restart in 0..4 {
        let clock = Clock::manual();
        let mut rig = rig(&clock);
        // At one moment all of them, so that the time does not tell.
        for n in 0..20 {
            assert!(rig.batch(&[create(user(n))])[0].is_ok());
        }
        for n in 0..20 {
            let n = n * 7 % 20;
            let touch = Ask::Touch(user(n), 1, if n % 2 == 0 { 50_000 } else { u64::MAX });
            assert_eq!(rig.batch(&[touch])[0].as_ref().unwrap().count(), 1);
        }
        if restart == 3 {
            rig.writer.storage.start_compaction();
            rig.begin_upkeep();
            rig.writer.storage.upkeep();
            assert!(rig.writer.storage.compaction.is_none());
        }
        let Rig { disk, writer, .. } = rig;
        match restart {
            0 => writer.finish().unwrap(),
            _ => drop(writer),
        }
        let world = if restart == 2 { disk.after_power_cut() } else { disk.world().clone() };
        let mut rig = Rig::open(world, &clock).1.unwrap();
        let gone = ended(ask(&mut rig, login(user(20), limited(11))).unwrap());
        assert_eq!(gone, (0..10).map(|n| user(n * 7 % 20)).collect::<Vec<_>>(), "restart {restart}");
        assert_eq!(there(&rig).len(), 11);
    }
}

#[test]
fn logins_of_one_batch_leave_as_many_as_the_limit_and_the_last_of_them() {
    let (disk, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(user(1_000))])[0].is_ok());
    let answers = rig.answers((0..100).map(|n| login(user(n), limited(5))));
    let gone: Vec<RecordId> = answers.into_iter().flat_map(|answer| ended(created(answer.unwrap()))).collect();
    let in_order: Vec<RecordId> = [1_000].into_iter().chain(0..95).map(user).collect();
    assert_eq!(gone, in_order);
    let last: Vec<RecordId> = (95..100).map(user).collect();
    assert_eq!(there(&rig), last);
    assert_eq!(there(&Rig::open(disk.after_power_cut(), &Clock::manual()).1.unwrap()), last);
    // And what was ended in the batch in which it began is remembered: its login may have been answered.
    let terms = Terms { retry: true, ..limited(5) };
    assert!(ask(&mut rig, login(user(3), terms)).is_err());
}

#[test]
fn a_login_takes_the_place_of_the_visitors_record_if_nobody_wrote_to_it() {
    let mut rig = rig(&Clock::manual());
    let visitor = id(None, 0);
    assert!(rig.batch(&[create(visitor)])[0].is_ok());
    let leaves = |id, version| Terms { leaves: Some((id, version)), ..Terms::default() };
    let Left::Conflict(there) = left(ask(&mut rig, login(user(0), leaves(visitor, 2))).unwrap()) else {
        panic!("conflict")
    };
    assert_eq!((there.id, there.version), (visitor, 1));
    assert!(matches!(left(ask(&mut rig, login(user(1), leaves(id(None, 9), 1))).unwrap()), Left::Gone));
    assert!(matches!(left(ask(&mut rig, login(user(2), Terms::default())).unwrap()), Left::NotTried));
    // What a user has is not left.
    assert!(matches!(left(ask(&mut rig, login(user(3), leaves(user(0), 1))).unwrap()), Left::NotTried));
    // A repeat tries it again.
    assert!(matches!(left(ask(&mut rig, login(user(0), leaves(visitor, 1))).unwrap()), Left::Done));
    assert!(matches!(left(ask(&mut rig, login(user(0), leaves(visitor, 1))).unwrap()), Left::Gone));
    assert_eq!(self::there(&rig), [0, 1, 2, 3].map(user));
    assert!(rig.batch(&[create(visitor)])[0].is_ok());
    let lines = rig.bytes().iter().filter(|byte| **byte == b'\n').count();
    let terms = Terms { leaves: Some((visitor, 1)), ..limited(2) };
    let Created::Done { ended, left } = ask(&mut rig, login(user(4), terms)).unwrap() else { panic!("done") };
    assert_eq!(ended, [0, 1, 2].map(user));
    assert!(matches!(left, Left::Done));
    assert_eq!(self::there(&rig), [3, 4].map(user));
    // All of it is one line, of which a crash leaves nothing or everything.
    assert_eq!(rig.bytes().iter().filter(|byte| **byte == b'\n').count(), lines + 1);
}

#[test]
fn a_reader_sees_the_new_session_and_the_end_of_the_others_once_both_are_written() {
    let (clock, disk) = (Clock::manual(), Hooked::new(World::new(1).disk(), false));
    let mut rig = hooked(&disk, &clock, Durability::Sync);
    let visitor = id(None, 0);
    assert!(rig.batch(&[create(user(0)), create(visitor)]).iter().all(Result::is_ok));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (table, saw) = (Arc::clone(&rig.writer.storage.table), Arc::clone(&seen));
    *disk.on_sync.lock().unwrap() = Some(Box::new(move || {
        let table = read(&table);
        saw.lock().unwrap().push([user(0), visitor, user(1)].map(|id| matches!(table.load(id), Lookup::Live(_))));
    }));
    let terms = Terms { leaves: Some((visitor, 1)), ..limited(1) };
    assert_eq!(ended(ask(&mut rig, login(user(1), terms)).unwrap()), [user(0)]);
    assert_eq!(*seen.lock().unwrap(), [[true, true, false]]);
    assert_eq!(there(&rig), [user(1)]);
}

#[test]
fn p19_what_a_login_ends_makes_room_for_it() {
    for bounds in [
        FileBounds { max_sessions: 3, ..FileBounds::default() },
        FileBounds { max_bytes: 3 * 270, ..FileBounds::default() },
    ] {
        let mut rig = rig(&Clock::manual());
        rig.writer.bounds = bounds;
        let visitor = id(None, 0);
        assert!(rig.batch(&[create(user(0)), create(user(1)), create(visitor)]).iter().all(Result::is_ok));
        // Nobody gives way: one of the user's own ends.
        assert_eq!(ended(ask(&mut rig, login(user(2), limited(2))).unwrap()), [user(0)]);
        assert_eq!(there(&rig), [visitor, user(1), user(2)]);
        // Nor here: it takes the place of the visitor's.
        let terms = Terms { leaves: Some((visitor, 1)), ..limited(3) };
        let created = ask(&mut rig, login(user(3), terms)).unwrap();
        assert!(matches!(created, Created::Done { ended, left: Left::Done } if ended.is_empty()));
        let before = rig.contents();
        assert_eq!(ask(&mut rig, login(user(4), limited(4))).unwrap_err().kind(), ErrorKind::Unavailable);
        let large = Ask::Create(user(4), 1, 1_000, vec![0; 2_000].into()).op();
        let Op::Create { new, .. } = large else { unreachable!() };
        rig.writer.bounds.max_bytes = 3 * 270;
        let terms = TermsAt::new(limited(2), || Duration::ZERO).into();
        assert_eq!(ask(&mut rig, Op::Create { new, terms }).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(rig.contents(), before, "what was refused ended nothing");
        assert_eq!(ended(ask(&mut rig, login(user(4), limited(1))).unwrap()).len(), 3);
        assert_eq!(there(&rig), [user(4)]);
    }
}

#[test]
fn p19_on_a_full_disk_a_login_above_the_limit_is_refused_and_ends_nothing() {
    let mut world = World::new(1);
    world.capacity = Some(1 << 20);
    let (disk, rig) = Rig::open(world, &Clock::manual());
    let mut rig = rig.unwrap();
    // Another user fills it, to the last byte.
    let pad = |n| Ask::Create(id(Some(2), n), 1, 100_000, vec![b'x'; 2_000].into());
    for n in 0..100 {
        assert!(ended(ask(&mut rig, login(user(n), limited(100))).unwrap()).is_empty());
    }
    let mut n = 0;
    while rig.batch(&[pad(n)])[0].is_ok() {
        n += 1;
        rig.begin_upkeep();
    }
    disk.world().fill();
    let before = rig.contents();
    for limit in [100, 1] {
        let refused = ask(&mut rig, login(user(100), limited(limit))).unwrap_err();
        assert_eq!((refused.kind(), rig.contents() == before), (ErrorKind::Unavailable, true));
    }
    // A sign-out works, and then there is room for one that ends all the others.
    assert!(rig.batch(&[Ask::Clear(id(Some(2), 0), None)])[0].is_ok());
    rig.begin_upkeep();
    disk.world().capacity = Some(1 << 20);
    assert_eq!(ended(ask(&mut rig, login(user(100), limited(1))).unwrap()).len(), 100);
    let (_, again) = Rig::open(disk.after_power_cut(), &Clock::manual());
    assert_eq!(there(&again.unwrap()), [user(100)]);
}

#[test]
fn a_login_is_late_after_a_clear_and_after_the_file_was_opened_again() {
    let clock = Clock::manual();
    let (disk, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    let owner = Owner::from([1; 16]);
    let mark = |rig: &Rig| {
        let table = read(&rig.writer.storage.table);
        table.clears.mark(owner, table.now())
    };
    let with = |mark| Terms { since: Some(Since::Mark(mark)), ..Terms::default() };
    let clear = |name| Op::Clear { owner, clear: Clear { name, by: None } };
    let first = mark(&rig);
    assert!(ask(&mut rig, login(user(0), with(first))).is_ok_and(|created| matches!(created, Created::Done { .. })));
    // In one batch, in either order.
    let answers = rig.answers([login(user(1), with(first)), clear(7), login(user(2), with(first))].into_iter());
    assert!(matches!(answers[0], Ok(OpReply::Created(Created::Done { .. }))));
    assert!(matches!(answers[1], Ok(OpReply::Cleared(Cleared::Done(2)))));
    assert!(matches!(answers[2], Ok(OpReply::Created(Created::Late))));
    assert!(matches!(ask(&mut rig, login(user(2), with(first))), Ok(Created::Late)));
    let second = mark(&rig);
    assert_eq!(second.clear, Some(7));
    clock.advance(Duration::from_secs(15 * 60));
    assert!(matches!(ask(&mut rig, login(user(2), with(second))), Ok(Created::Done { .. })));
    clock.advance(Duration::from_millis(1));
    assert!(matches!(ask(&mut rig, login(user(3), with(second))), Ok(Created::Late)));
    // Fifteen minutes later it names none, and a clear refuses it nevertheless.
    let none = mark(&rig);
    assert_eq!(none.clear, None);
    assert!(rig.answers([clear(8)].into_iter())[0].is_ok());
    assert!(matches!(ask(&mut rig, login(user(3), with(none))), Ok(Created::Late)));
    let last = mark(&rig);
    let (_, again) = Rig::open(disk.world().clone(), &clock);
    let mut again = again.unwrap();
    assert!(matches!(ask(&mut again, login(user(3), with(last))), Ok(Created::Late)));
    let good = mark(&again);
    assert!(matches!(ask(&mut again, login(user(3), with(good))), Ok(Created::Done { .. })));
}

/// A file in a folder of its own, which is removed again.
struct TestStore {
    backend: JsonBackend,
    folder: PathBuf,
}

impl TestStore {
    async fn new(name: &str, clock: &Clock) -> Self {
        let folder = std::env::temp_dir().join(format!("jam-session-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, durability, bounds) = (folder.join("sessions.json"), Durability::Flush, FileBounds::default());
        let file = JsonFile { path, durability, bounds };
        let backend = JsonBackend::open(file, clock.clone(), Duration::ZERO).await.unwrap();
        Self { backend, folder }
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn record(id: RecordId, ttl: u64) -> Record {
    Record::new(id, 1, Duration::from_millis(ttl), "{}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_logins_at_once_leave_as_many_as_the_limit() {
    let opened = Arc::new(TestStore::new("at-once", &Clock::system()).await);
    let logins: Vec<_> = (0..100)
        .map(|n| {
            let opened = Arc::clone(&opened);
            tokio::spawn(async move {
                let created = opened.backend.create(record(user(n), 100_000), limited(5)).await.unwrap();
                assert!(opened.backend.list(Owner::from([1; 16])).await.unwrap().len() <= 5);
                ended(created)
            })
        })
        .collect();
    let mut gone = Vec::new();
    for login in logins {
        gone.extend(login.await.unwrap());
    }
    let left: Vec<RecordId> =
        opened.backend.list(Owner::from([1; 16])).await.unwrap().iter().map(|there| there.id).collect();
    let all: BTreeSet<RecordId> = gone.iter().chain(&left).copied().collect();
    assert_eq!((gone.len(), left.len(), all.len()), (95, 5, 100));
}

#[tokio::test]
async fn a_scan_finds_what_is_there_all_the_time_whatever_changes_between_its_pages() {
    let clock = Clock::manual();
    let opened = TestStore::new("scan", &clock).await;
    let backend = &opened.backend;
    let visitors = SOME as u64 + 100;
    for n in 0..visitors {
        let ttl = if n % 10 == 0 { 1_000 } else { 100_000 };
        assert!(matches!(backend.create(record(id(None, n), ttl), Terms::default()).await, Ok(Created::Done { .. })));
    }
    for n in 0..50 {
        assert!(matches!(backend.create(record(user(n), 100_000), Terms::default()).await, Ok(Created::Done { .. })));
    }
    let count = backend.count().await.unwrap();
    assert_eq!((count.signed_in, count.visitors), (50, visitors));
    clock.advance(Duration::from_secs(1));
    let stays = |n: &u64| !n.is_multiple_of(10) && !n.is_multiple_of(3);
    let live = (0..visitors).filter(|n| n % 10 != 0).count() as u64;
    let count = backend.count().await.unwrap();
    assert_eq!((count.signed_in, count.visitors), (50, live));
    for most in [0, 7, SOME, usize::MAX] {
        let (mut found, mut after, mut pages) = (BTreeSet::new(), None, 0);
        loop {
            let page = backend.scan(after, most).await.unwrap();
            assert!(page.records.len() <= most.max(1) && page.records.iter().all(|record| !record.ttl.is_zero()));
            found.extend(page.records.iter().map(|record| record.id));
            pages += 1;
            // Some are written, some end, and others take their places.
            let n = pages * 3 % visitors;
            let updated = backend.update(1, record(id(None, n + 1), 100_000), false).await;
            assert!(matches!(updated, Ok(Outcome::Done | Outcome::Gone)));
            if backend.delete(id(None, n)).await.unwrap() {
                assert!(backend.create(record(id(None, n), 100_000), Terms::default()).await.is_ok());
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert!((0..visitors).filter(stays).all(|n| found.contains(&id(None, n))), "{most}");
        assert!((0..50).all(|n| found.contains(&user(n))), "{most}");
        let expired = |there: &RecordId| (0..visitors).step_by(10).any(|n| id(None, n) == *there);
        assert!(!found.iter().any(expired), "{most}");
    }
    let other = TestStore::new("scan-other", &clock).await;
    let foreign = backend.scan(None, 1).await.unwrap().next;
    assert!(foreign.is_some() && other.backend.scan(foreign, 1).await.is_err());
    for bytes in [vec![], vec![0; 15], vec![0xff; 16], vec![0; 100]] {
        assert!(backend.scan(Some(Cursor::new(bytes)), 1).await.is_err());
    }
    assert_eq!(other.backend.count().await.unwrap(), Default::default());
    assert!(other.backend.scan(None, 10).await.unwrap().next.is_none());
}

/// What a scan or a count leaves out does not come back.
#[tokio::test]
async fn p18_what_a_count_or_a_scan_leaves_out_has_ended_in_the_file_too() {
    for scans in [false, true] {
        let clock = Clock::manual();
        let opened = TestStore::new(if scans { "says-scan" } else { "says-count" }, &clock).await;
        assert!(opened.backend.create(record(user(0), 1_000), Terms::default()).await.is_ok());
        clock.advance(Duration::from_secs(1));
        if scans {
            assert!(opened.backend.scan(None, 10).await.unwrap().records.is_empty());
        } else {
            assert_eq!(opened.backend.count().await.unwrap().signed_in, 0);
        }
        assert!(matches!(read(&opened.backend.table).load(user(0)), Lookup::Nothing));
    }
}
