//! The memory store compared with a plain map, with and without bounds.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    iter::successors,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    shard::{MIN_DUE, OVERHEAD},
    *,
};
use crate::{
    backend::{
        Backend, Outcome,
        clear::{By, Clear, Cleared},
        terms::{Created, Left, Limit, Since, Terms},
    },
    random::{STEP, mix},
    record::Record,
    sessions::tests::{TWO_HOURS, nothing_comes_back},
    stores::cursor::cursor,
};

/// The memory store as a plain map.
#[derive(Default)]
struct Model {
    records: BTreeMap<RecordId, KeptRecord>,
    uses: u64,
}

struct KeptRecord {
    version: i64,
    first: i64,
    /// In milliseconds; `None` for never.
    expires: Option<u64>,
    payload: Bytes,
    used: u64,
    heard: u64,
}

impl Model {
    fn room(&self, only: impl Fn(&RecordId) -> bool) -> Room {
        let rooms = self.records.iter().filter(|(id, _)| only(id)).map(|(_, kept)| Room::of(&kept.payload));
        rooms.fold(Room::default(), |sum, room| Room {
            sessions: sum.sessions + room.sessions,
            bytes: sum.bytes + room.bytes,
        })
    }

    /// The same for a login: with a limit, and with the visitor's record that it ends. Returns `None` if there is no room, and
    /// `Some(None)` if the limit refuses the login.
    fn make_room_on(
        &mut self,
        id: RecordId,
        more: Room,
        bounds: (usize, usize),
        limit: Limit,
        leaves: Option<(RecordId, i64)>,
    ) -> Option<Option<Vec<RecordId>>> {
        let of_owner = self.records.iter().filter(|(there, _)| there.owner().is_some() && there.owner() == id.owner());
        let mut ends: Vec<(u64, RecordId)> = of_owner.map(|(id, kept)| (kept.heard, *id)).collect();
        ends.sort();
        let most = match limit {
            Limit::Refuse(most) if id.owner().is_some() && ends.len() >= most => return Some(None),
            Limit::LeastRecent(most) => most,
            _ => usize::MAX,
        };
        ends.truncate((ends.len() + 1).saturating_sub(most).min(ends.len()));
        let ends: Vec<RecordId> = ends.into_iter().map(|(_, id)| id).collect();
        let leaves = leaves.filter(|(id, version)| self.records.get(id).is_some_and(|there| there.version == *version));
        let gone: Vec<RecordId> = ends.iter().copied().chain(leaves.map(|(id, _)| id)).collect();
        let gone: Vec<_> = gone.iter().filter_map(|id| self.records.remove_entry(id)).collect();
        if !self.make_room(id, more, bounds) {
            self.records.extend(gone);
            return None;
        }
        Some(Some(ends))
    }

    /// Whether there is room for that; then others have given way for it.
    fn make_room(&mut self, id: RecordId, more: Room, (sessions, bytes): (usize, usize)) -> bool {
        let fits = |room: Room| room.sessions + more.sessions <= sessions && room.bytes + more.bytes <= bytes;
        if !fits(self.room(|there| there.owner().is_some() || *there == id)) {
            return false;
        }
        while !fits(self.room(|_| true)) {
            let anonymous = self.records.iter().filter(|(there, _)| there.owner().is_none() && **there != id);
            let oldest = *anonymous.min_by_key(|(_, kept)| kept.used).unwrap().0;
            self.records.remove(&oldest);
        }
        true
    }

    fn mark_used(&mut self, id: RecordId) {
        self.uses += 1;
        if let Some(kept) = self.records.get_mut(&id) {
            kept.used = self.uses;
        }
    }

    fn mark_heard(&mut self, id: RecordId) {
        self.uses += 1;
        if let Some(kept) = self.records.get_mut(&id) {
            kept.heard = self.uses;
        }
    }
}

fn done<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("memory waits for nobody"),
    }
}

fn below(seed: &mut u64, end: u64) -> u64 {
    *seed = seed.wrapping_add(STEP);
    mix(*seed) % end
}

fn id(owner: Option<u8>, sid: u64) -> RecordId {
    let sid = format!("AAAAAAAAAAAAAAAAAA{sid:04}");
    match owner {
        Some(owner) => format!("{}.{sid}", Owner::from([owner; 16])).parse().unwrap(),
        None => sid.parse().unwrap(),
    }
}

fn backend(clock: &Clock, (max_sessions, max_bytes): (usize, usize)) -> MemoryBackend {
    let mut backend = MemoryBackend::default();
    (backend.bounds.max_sessions, backend.bounds.max_bytes) = (max_sessions, max_bytes);
    backend.set_clock(clock.clone());
    backend
}

/// All that a scan finds, with something that happens between its pages.
fn scanned(backend: &MemoryBackend, most: usize, mut between: impl FnMut()) -> Vec<RecordId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = done(backend.scan(after, most)).unwrap();
        assert!(page.records.len() <= most.max(1) && !page.moved);
        found.extend(page.records.into_iter().map(|record| record.id));
        between();
        match page.next {
            Some(next) => after = Some(next),
            None => return found,
        }
    }
}

/// Checks that tables, lists and counters agree.
fn check(backend: &MemoryBackend) {
    let (mut keyed, mut anonymous) = (Room::default(), Room::default());
    for shard in &backend.shards {
        let shard = lock(shard);
        let (mut linked, mut owners) = (0, 0);
        for (at, entry) in &shard.entries {
            let at = at as u32;
            assert_eq!(shard.find(entry.id), Some(at));
            assert!(entry.due <= entry.expires);
            assert!(shard.due.iter().any(|&Reverse(due)| due == (entry.due, at)));
            let (room, used) = (Room::of(&entry.payload), entry.id.owner().map_or(&mut anonymous, |_| &mut keyed));
            (used.sessions, used.bytes) = (used.sessions + 1, used.bytes + room.bytes);
            if let Some(owner) = entry.id.owner() {
                assert_eq!(shard.of(owner).filter(|there| *there == at).count(), 1);
                owners += usize::from(entry.newer.is_none());
            }
            for (neighbour, is_older) in [(entry.older, true), (entry.newer, false)] {
                let Some(neighbour) = neighbour else { continue };
                let neighbour = shard.entry(neighbour);
                assert_eq!(if is_older { neighbour.newer } else { neighbour.older }, Some(at));
                assert_eq!(neighbour.id.owner(), entry.id.owner());
            }
        }
        let mut last = None;
        for at in successors(shard.oldest, |&at| shard.entry(at).newer) {
            assert!(last < Some(shard.entry(at).used));
            last = Some(shard.entry(at).used);
            linked += 1;
        }
        assert_eq!(linked, shard.entries.iter().filter(|(_, entry)| entry.id.owner().is_none()).count());
        assert_eq!(shard.visitors, linked);
        assert_eq!(shard.oldest.is_none(), shard.newest.is_none());
        assert_eq!((shard.by_id.len(), shard.by_owner.len()), (shard.entries.len(), owners));
        assert!(shard.due.len() <= 2 * shard.entries.len() + MIN_DUE);
    }
    let usage = backend.bounds.usage();
    for (counted, there) in [(usage.keyed, keyed), (usage.anonymous, anonymous)] {
        assert_eq!((counted.sessions, counted.bytes), (there.sessions, there.bytes));
    }
}

fn run(seed: u64, bounds: (usize, usize), steps: usize) {
    const TTLS: [u64; 6] = [0, 1, 3, 20, 1000, u64::MAX];
    let clock = Clock::manual();
    let (backend, mut model, mut random) = (backend(&clock, bounds), Model::default(), seed);
    let mut random = |end| below(&mut random, end);
    for step in 0..steps {
        if random(3) == 0 {
            clock.advance(Duration::from_millis([1, 1, 2, 19, 400][random(5) as usize]));
        }
        let now = clock.now_ms();
        model.records.retain(|_, kept| kept.expires.is_none_or(|expires| expires > now));
        let id = id([None, None, Some(1), Some(2), Some(3)][random(5) as usize], random(5));
        let ttl = TTLS[random(6) as usize];
        let expires = now.checked_add(ttl);
        let ttl = if ttl == u64::MAX { Duration::MAX } else { Duration::from_millis(ttl) };
        let payload = Bytes::from(vec![step as u8; random(40) as usize]);
        let version = random(3) as i64;
        let room = Room::of(&payload);
        let there = model.records.get(&id).map(|kept| kept.version);
        let context = format!("seed {seed}, step {step}");
        match random(16) {
            0..3 => {
                let loaded = done(backend.load(id)).unwrap();
                assert_eq!(loaded.as_ref().map(|record| record.version), there, "{context}");
                if let Some(record) = loaded {
                    let kept = &model.records[&id];
                    assert_eq!((record.id, &record.payload), (id, &kept.payload), "{context}");
                    if let Some(expires) = kept.expires {
                        assert_eq!(record.ttl, Duration::from_millis(expires - now), "{context}");
                    }
                }
                model.mark_used(id);
            }
            3..8 => {
                let record = Record::new(id, version, ttl, payload.clone());
                let limit = match random(6) {
                    0 => Limit::Refuse(random(3) as usize),
                    1..4 => Limit::LeastRecent(random(4) as usize),
                    _ => Limit::None,
                };
                let visitor = self::id(None, random(5));
                let leaves = (random(2) == 0 && visitor != id).then_some((visitor, random(3) as i64));
                let other = leaves.map(|(id, version)| (version, model.records.get(&id).map(|kept| kept.version)));
                let created = done(backend.create(record, Terms { limit, leaves, ..Terms::default() }));
                let is_own = model.records.get(&id).is_some_and(|kept| [kept.version, kept.first].contains(&version));
                let expected = match there {
                    Some(_) if is_own => Some(Some(Vec::new())),
                    Some(_) => Some(None),
                    None => model.make_room_on(id, room, bounds, limit, leaves),
                };
                match (created, expected) {
                    (Ok(Created::Done { ended, left }), Some(Some(ends))) => {
                        assert_eq!(ended, ends, "{context}");
                        match (left, other) {
                            (Left::NotTried, None) | (Left::Gone, Some((_, None))) => {}
                            // It has another version, and gave way.
                            (Left::Gone, Some((version, Some(there)))) => {
                                assert!(version != there && !model.records.contains_key(&visitor), "{context}");
                            }
                            (Left::Done, Some((version, Some(there)))) => {
                                assert_eq!(version, there, "{context}");
                                model.records.remove(&visitor);
                            }
                            (Left::Conflict(record), Some((version, Some(there)))) => {
                                assert!(
                                    version != there && record.version == there && record.id == visitor,
                                    "{context}"
                                );
                            }
                            (left, other) => panic!("{context}: {left:?} {other:?}"),
                        }
                        if there.is_none() {
                            let kept = KeptRecord { version, first: version, expires, payload, used: 0, heard: 0 };
                            model.records.insert(id, kept);
                            model.mark_used(id);
                            model.mark_heard(id);
                        }
                    }
                    (Ok(Created::Taken), Some(None)) => assert!(there.is_some(), "{context}"),
                    (Ok(Created::Full), Some(None)) => assert!(there.is_none(), "{context}"),
                    (Err(_), None) => {}
                    (created, expected) => panic!("{context}: {created:?} {expected:?}"),
                }
            }
            8..11 => {
                let expected = random(3) as i64;
                let record = Record::new(id, version, ttl, payload.clone());
                let updated = done(backend.update(expected, record, false));
                match there {
                    None => assert!(matches!(updated, Ok(Outcome::Gone)), "{context}"),
                    Some(there) if there != expected => {
                        let Ok(Outcome::Conflict(current)) = updated else { panic!("{context}") };
                        assert_eq!((current.version, &current.payload), (there, &model.records[&id].payload));
                    }
                    Some(_) => {
                        let more = room.beyond(Room::of(&model.records[&id].payload));
                        let fits = more.bytes == 0 || model.make_room(id, more, bounds);
                        assert_eq!(matches!(updated, Ok(Outcome::Done)), fits, "{context}");
                        assert_eq!(updated.is_ok(), fits, "{context}");
                        if fits {
                            let first = model.records[&id].first;
                            let kept = KeptRecord { version, first, expires, payload, used: 0, heard: 0 };
                            model.records.insert(id, kept);
                            model.mark_used(id);
                            model.mark_heard(id);
                        }
                    }
                }
            }
            11..13 => {
                done(backend.touch(id, version, ttl)).unwrap();
                if let Some(kept) = model.records.get_mut(&id).filter(|kept| kept.version == version) {
                    kept.expires = expires;
                    model.mark_heard(id);
                }
            }
            13 => {
                assert_eq!(done(backend.delete(id)).unwrap(), there.is_some(), "{context}");
                model.records.remove(&id);
            }
            what => {
                let Some(owner) = id.owner() else { continue };
                let of_owner = |id: &RecordId| id.owner() == Some(owner);
                let mut listed: Vec<_> = done(backend.list(owner)).unwrap().iter().map(|record| record.id).collect();
                listed.sort();
                assert!(listed.iter().eq(model.records.keys().filter(|id| of_owner(id))), "{context}");
                if what == 14 && random(3) == 0 {
                    let by = (random(2) == 0).then_some(By { id, version, keep: random(2) == 0 });
                    let cleared = done(backend.clear(owner, Clear { name: step as i64, by })).unwrap();
                    match by {
                        Some(_) if there.is_none() => assert!(matches!(cleared, Cleared::Gone), "{context}"),
                        Some(_) if there != Some(version) => {
                            let Cleared::Conflict(current) = cleared else { panic!("{context}") };
                            assert_eq!(Some(current.version), there, "{context}");
                        }
                        _ => {
                            let keep = by.filter(|by| by.keep).map(|by| by.id);
                            let ended = listed.iter().filter(|id| Some(**id) != keep).count() as u64;
                            assert!(matches!(cleared, Cleared::Done(count) if count == ended), "{context}");
                            model.records.retain(|id, _| !of_owner(id) || Some(*id) == keep);
                        }
                    }
                }
            }
        }
        if random(10) == 0 {
            let model = model.records.iter().filter(|(_, kept)| kept.expires.is_none_or(|at| at > now));
            let (keyed, visitors): (Vec<_>, Vec<_>) = model.map(|(id, _)| *id).partition(|id| id.owner().is_some());
            let count = done(backend.count()).unwrap();
            assert_eq!((count.signed_in, count.visitors), (keyed.len() as u64, visitors.len() as u64), "{context}");
            let mut found = scanned(&backend, random(4) as usize, || {});
            found.sort();
            let all: BTreeSet<RecordId> = keyed.into_iter().chain(visitors).collect();
            assert!(found.iter().eq(&all), "{context}");
        }
        // One with no time to live may stand until somebody comes by, and is nothing to anybody.
        check(&backend);
    }
    for id in model.records.into_keys() {
        done(backend.delete(id)).unwrap();
    }
    clock.advance(Duration::from_secs(10));
    while backend.drop_any_expired() {}
    check(&backend);
    assert_eq!((backend.sessions(), backend.bytes()), (0, 0), "seed {seed}");
    for shard in &backend.shards {
        let shard = lock(shard);
        assert!(shard.oldest.is_none() && shard.by_owner.is_empty() && shard.due.len() <= MIN_DUE);
    }
}

#[test]
fn it_does_what_a_plain_map_would_do() {
    for seed in 0..40 {
        run(seed, (usize::MAX, usize::MAX), 400);
    }
}

#[test]
fn within_its_bounds_it_does_what_a_plain_map_would_do() {
    for seed in 0..40 {
        run(seed, (6, usize::MAX), 400);
        run(seed, (usize::MAX, 5 * OVERHEAD + 60), 400);
    }
}

#[test]
fn a_name_that_is_taken_takes_nobodys_place() {
    let (clock, none) = (Clock::manual(), Bytes::new());
    let backend = backend(&clock, (2, usize::MAX));
    let create = |id, version| {
        let record = Record::new(id, version, Duration::from_secs(1), none.clone());
        done(backend.create(record, Terms::default())).unwrap()
    };
    for sid in [1, 2] {
        assert!(matches!(create(id(None, sid), 1), Created::Done { .. }));
    }
    assert!(matches!(create(id(None, 1), 2), Created::Taken));
    assert!(done(backend.load(id(None, 2))).unwrap().is_some());
    // All that could give way is the one itself.
    assert!(done(backend.delete(id(None, 2))).unwrap());
    assert!(matches!(create(id(Some(1), 1), 1), Created::Done { .. }));
    assert!(matches!(create(id(None, 1), 2), Created::Taken));
}

fn record(id: RecordId) -> Record {
    Record::new(id, 1, Duration::from_secs(100), Bytes::from_static(b"{}"))
}

fn ended(created: Result<Created>) -> Vec<RecordId> {
    match created {
        Ok(Created::Done { ended, .. }) => ended,
        other => panic!("{other:?}"),
    }
}

/// Each of them ends another one and the record of a visitor, in a store that has no room for one more.
#[test]
fn p19_a_hundred_logins_at_once_leave_as_many_as_the_limit() {
    for (max_sessions, visitors) in [(usize::MAX, 100), (5 + 100, 100), (5, 0)] {
        let backend = backend(&Clock::system(), (max_sessions, usize::MAX));
        for n in 0..visitors {
            ended(done(backend.create(record(id(None, n)), Terms::default())));
        }
        let most = |n: usize| Terms { limit: Limit::from(n), ..Terms::default() };
        let logins = |from: u64| {
            (from..from + 25).flat_map(|n| {
                let leaves = Some((id(None, n), 1));
                let gone = ended(done(backend.create(record(id(Some(1), n)), Terms { leaves, ..most(5) })));
                let listed = done(backend.list(Owner::from([1; 16]))).unwrap();
                assert!(listed.len() <= 5);
                for there in listed {
                    done(backend.touch(there.id, 1, Duration::from_secs(100))).unwrap();
                }
                gone
            })
        };
        let gone: Vec<RecordId> = std::thread::scope(|scope| {
            let threads = [0, 25, 50, 75].map(|from| scope.spawn(move || logins(from).collect::<Vec<_>>()));
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let left = done(backend.list(Owner::from([1; 16]))).unwrap();
        let all: BTreeSet<RecordId> = gone.iter().copied().chain(left.iter().map(|there| there.id)).collect();
        assert_eq!((gone.len(), left.len(), all.len(), backend.sessions()), (95, 5, 100, 5));
        check(&backend);
    }
}

#[test]
fn above_the_limit_the_one_heard_of_longest_ago_ends_whatever_was_read() {
    let clock = Clock::manual();
    let backend = backend(&clock, (usize::MAX, usize::MAX));
    let user = |n| id(Some(1), n);
    let create = |n, limit| done(backend.create(record(user(n)), Terms { limit, ..Terms::default() }));
    for n in 0..3 {
        assert!(ended(create(n, 3.into())).is_empty());
    }
    assert!(done(backend.load(user(1))).unwrap().is_some());
    done(backend.touch(user(0), 1, Duration::from_secs(100))).unwrap();
    assert!(matches!(done(backend.update(1, record(user(2)), false)), Ok(Outcome::Done)));
    for (new, gone) in [(3, 1), (4, 0), (5, 2), (6, 3)] {
        assert_eq!(ended(create(new, 3.into())), [user(gone)]);
    }
    assert!(matches!(create(7, Limit::refuse(3)), Ok(Created::Full)));
    assert_eq!(done(backend.list(Owner::from([1; 16]))).unwrap().len(), 3);
    // It may have been lowered, even to none.
    assert_eq!(ended(create(7, 2.into())), [user(4), user(5)]);
    assert_eq!(ended(create(8, 0.into())), [user(6), user(7)]);
    // What was ended was not never there.
    let terms = Terms { retry: true, limit: 3.into(), ..Terms::default() };
    assert!(done(backend.create(record(user(7)), terms)).is_err());
    // What has expired does not count, and does not end again.
    ended(create(9, 2.into()));
    clock.advance(Duration::from_secs(100));
    assert!(ended(create(10, Limit::refuse(1))).is_empty());
}

#[test]
fn a_mark_is_good_until_the_next_clear_and_only_for_its_store() {
    let clock = Clock::manual();
    let stores = [(); 2].map(|()| backend(&clock, (usize::MAX, usize::MAX)));
    let owner = Owner::from([1; 16]);
    let create = |backend: &MemoryBackend, n, mark| {
        let since = Some(Since::Mark(mark));
        done(backend.create(record(id(Some(1), n)), Terms { since, ..Terms::default() })).unwrap()
    };
    let first = done(stores[0].mark(owner)).unwrap();
    assert!(matches!(create(&stores[0], 0, first), Created::Done { .. }));
    assert!(matches!(create(&stores[1], 0, first), Created::Late));
    for (name, before) in [(7, first), (8, done(stores[0].mark(owner)).unwrap())] {
        assert!(matches!(done(stores[0].clear(owner, Clear { name, by: None })), Ok(Cleared::Done(_))));
        let after = done(stores[0].mark(owner)).unwrap();
        assert_eq!(after.clear, Some(name));
        assert!(matches!(create(&stores[0], 1, before), Created::Late));
        assert!(matches!(create(&stores[0], 1, after), Created::Done { .. }));
        clock.advance(Duration::from_secs(15 * 60));
        assert!(matches!(create(&stores[0], 2, after), Created::Done { .. }));
        clock.advance(Duration::from_millis(1));
        assert!(matches!(create(&stores[0], 3, after), Created::Late));
    }
}

#[test]
fn a_scan_finds_what_is_there_all_the_time_whatever_changes_between_its_pages() {
    let backend = backend(&Clock::manual(), (usize::MAX, usize::MAX));
    let ids: Vec<RecordId> = (0..3_000).map(|n| id((n % 2 == 0).then_some((n % 7) as u8), n)).collect();
    for id in &ids {
        ended(done(backend.create(record(*id), Terms::default())));
    }
    for most in [0, 1, 10, 2_000, usize::MAX] {
        let mut n = 0;
        let found = scanned(&backend, most, || {
            // Some are written, and some end, whose places others take.
            n = (n + 3) % 3_000;
            assert!(matches!(done(backend.update(1, record(ids[n + 1]), false)), Ok(Outcome::Done)));
            assert!(done(backend.delete(ids[n])).unwrap());
            ended(done(backend.create(record(ids[n]), Terms::default())));
        });
        let found: BTreeSet<RecordId> = found.into_iter().collect();
        assert!(ids.iter().enumerate().all(|(n, id)| n % 3 == 0 || found.contains(id)), "{most}");
    }
    let other = self::backend(&Clock::manual(), (usize::MAX, usize::MAX));
    let page = done(backend.scan(None, 10)).unwrap();
    assert!(page.next.is_some() && done(other.scan(page.next, 10)).is_err());
    for end in [u64::MAX, u64::from(u32::MAX), 1 << 32] {
        assert!(done(backend.scan(Some(cursor(backend.opening, end)), 10)).is_ok());
    }
}

/// With one shard nothing is left to chance: what has expired is gone with the next write.
#[test]
fn p19_a_shard_holds_no_more_than_what_is_alive() {
    let clock = Clock::manual();
    let mut backend = MemoryBackend::default();
    backend.shards = std::mem::take(&mut backend.shards).into_iter().take(1).collect();
    backend.set_clock(clock.clone());
    for n in 0..100_000 {
        clock.advance(Duration::from_millis(60));
        let id = format!("{n:022}").parse().unwrap();
        let record = Record::new(id, 1, Duration::from_secs(60), Bytes::new());
        assert!(matches!(done(backend.create(record, Terms::default())).unwrap(), Created::Done { .. }));
        assert_eq!(backend.sessions(), 1000.min(n + 1));
    }
    clock.advance(Duration::from_secs(60));
    for left in (0..1000).rev() {
        assert!(done(backend.load(id(None, 0))).unwrap().is_none());
        assert_eq!(backend.sessions(), left);
    }
    check(&backend);
    assert_eq!(backend.bytes(), 0);
}

#[test]
fn churn_leaves_nothing_behind() {
    let clock = Clock::manual();
    let backend = backend(&clock, (usize::MAX, usize::MAX));
    let record = |id, ttl| Record::new(id, 1, Duration::from_millis(ttl), Bytes::from_static(b"x"));
    let stays = id(None, 0);
    let _ = done(backend.create(record(stays, 1 << 40), Terms::default())).unwrap();
    for n in 0..20_000 {
        let id = id(Some(1), n % 7 + 1);
        let _ = done(backend.create(record(id, 100_000), Terms::default())).unwrap();
        done(backend.delete(id)).unwrap();
        // Each time it is to end earlier.
        assert!(matches!(done(backend.update(1, record(stays, (1 << 40) - n), false)), Ok(Outcome::Done)));
        done(backend.touch(stays, 1, Duration::from_secs(1 << 40))).unwrap();
    }
    check(&backend);
    assert!(backend.shards.iter().all(|shard| lock(shard).due.len() <= 2 + MIN_DUE));
}

#[tokio::test]
async fn p18_a_wall_clock_that_is_set_back_in_use_revives_and_lengthens_nothing() {
    let clock = Clock::adjustable();
    let sessions = MemorySessions::builder().clock(clock.clone()).default_ttl(None).max_lifetime(TWO_HOURS).build();
    nothing_comes_back(&sessions.unwrap(), &clock).await;
}
