//! The memory store compared with a plain map, with and without bounds.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
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
    random::{STEP, mix},
    sessions::tests::{TWO_HOURS, nothing_comes_back},
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
}

impl Model {
    fn room(&self, only: impl Fn(&RecordId) -> bool) -> Room {
        let rooms = self.records.iter().filter(|(id, _)| only(id)).map(|(_, kept)| Room::of(&kept.payload));
        rooms.fold(Room::default(), |sum, room| Room {
            sessions: sum.sessions + room.sessions,
            bytes: sum.bytes + room.bytes,
        })
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
                let created = done(backend.create(record, Terms::default()));
                let is_own = model.records.get(&id).is_some_and(|kept| [kept.version, kept.first].contains(&version));
                let fits = there.is_some() || model.make_room(id, room, bounds);
                match created {
                    Ok(Created::Done { .. }) => assert!(fits && (there.is_none() || is_own), "{context}"),
                    Ok(Created::Taken) => assert!(there.is_some() && !is_own, "{context}"),
                    created => assert!(!fits, "{context}: {created:?}"),
                }
                if fits && there.is_none() {
                    model.records.insert(id, KeptRecord { version, first: version, expires, payload, used: 0 });
                    model.mark_used(id);
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
                            model.records.insert(id, KeptRecord { version, first, expires, payload, used: 0 });
                            model.mark_used(id);
                        }
                    }
                }
            }
            11..13 => {
                done(backend.touch(id, version, ttl)).unwrap();
                if let Some(kept) = model.records.get_mut(&id).filter(|kept| kept.version == version) {
                    kept.expires = expires;
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
