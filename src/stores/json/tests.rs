//! The store on a disk that fails in every way and at every call.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    beside::write_beside,
    builder::JsonSessions,
    disk::{Disk, FileIdentity, Handle},
    journal::Durability,
    line::{Line, Payload, Place},
    queue::{Incoming, Op, OpReply, Put, Queue, QueuedOp},
    recovery::{self, Cut, Recovered},
    sim::{PAGE, Random, SimDisk, World},
    table::{Lookup, Table, read},
    thresholds::Thresholds,
    writer::Writer,
};
use crate::{
    backend::{
        Outcome,
        clear::{By, Clear, Cleared},
        terms::{Created, Limit, Terms},
    },
    clock::Clock,
    error::{Error, ErrorKind},
    random::random_version,
    record::id::{Owners, RecordId, Sid},
    sessions::tests::{TWO_HOURS, nothing_comes_back},
    stores::recent::TermsAt,
};

/// What is there: version, end, payload.
pub(super) type FileModel = BTreeMap<RecordId, (i64, u64, Bytes)>;

/// What may be there or not, of it only the first few, and when it was asked.
type Unsure = (u64, Vec<Ask>);

/// A change that can be asked more than once: of the file, and of the model.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Create(RecordId, i64, u64, Bytes),
    /// The only one of its owner from then on, and in the place of a visitor's record, if that has this version.
    Login(RecordId, i64, u64, Bytes, (RecordId, i64)),
    Update(i64, RecordId, i64, u64, Bytes),
    Touch(RecordId, i64, u64),
    Delete(RecordId),
    /// Of the owner of that record, by it or by none. By it, it stays if it has that version.
    Clear(RecordId, Option<i64>),
    Expire,
}

impl Ask {
    fn random(random: &mut Random, model: &FileModel, ids: &[RecordId]) -> Self {
        let id = ids[random.below(ids.len() as u64) as usize];
        let version = random.below(1 << 60) as i64;
        // Mostly the right one.
        let known = model.get(&id).map_or(version, |there| there.0);
        let expected = if random.chance(6) { version } else { known };
        let ttl = [0, 1, 50, 1_000, 100_000][random.below(5).max(random.below(5)) as usize];
        let payload = match random.below(4) {
            0 => Bytes::from(vec![b'\n'; random.below(60) as usize]),
            _ => format!(r#"{{"n":{version},"pad":"{}"}}"#, "x".repeat(random.below(200) as usize)).into(),
        };
        match random.below(16) {
            0..3 => Self::Create(id, version, ttl.max(1), payload),
            3..5 => {
                // The first two are visitors'.
                let visitor = ids[random.below(2) as usize];
                let known = model.get(&visitor).map_or(version, |there| there.0);
                let leaves = if random.chance(6) || visitor == id { version } else { known };
                Self::Login(id, version, ttl.max(1), payload, (visitor, leaves))
            }
            5..10 => Self::Update(expected, id, version, ttl, payload),
            10..12 => Self::Touch(id, expected, ttl),
            12..15 => Self::Delete(id),
            _ => Self::Clear(id, random.chance(2).then_some(expected)),
        }
    }

    pub(super) fn op(self) -> Op {
        let new = |id, version, ttl, payload| Put {
            id,
            version,
            ttl: Duration::from_millis(ttl),
            payload: Payload::new(payload),
        };
        match self {
            Self::Create(id, version, ttl, payload) => Op::Create {
                new: new(id, version, ttl, payload),
                terms: TermsAt::new(Terms::default(), || Duration::ZERO).into(),
            },
            Self::Login(id, version, ttl, payload, leaves) => {
                let terms = Terms { limit: Limit::from(1), leaves: Some(leaves), ..Terms::default() };
                let terms = TermsAt::new(terms, || Duration::ZERO).into();
                Op::Create { new: new(id, version, ttl, payload), terms }
            }
            Self::Update(expected, id, version, ttl, payload) => {
                Op::Update { expected, new: new(id, version, ttl, payload), retry: false }
            }
            Self::Touch(id, version, ttl) => Op::Touch { id, version, ttl: Duration::from_millis(ttl) },
            Self::Delete(id) => Op::Delete { id },
            Self::Expire => Op::Expire,
            Self::Clear(id, by) => match id.owner() {
                Some(owner) => {
                    let by = by.map(|version| By { id, version, keep: true });
                    Op::Clear { owner, clear: Clear { name: random_version(), by } }
                }
                None => Op::Delete { id },
            },
        }
    }

    /// Does it to the model, and says what the answer must be.
    fn apply(&self, model: &mut FileModel, now: u64) -> (u64, Option<i64>) {
        model.retain(|_, there| there.1 > now);
        let live = |id: &RecordId| model.get(id).map(|there| there.0);
        match self {
            Self::Create(id, version, ..) if live(id).is_some() => (u64::from(live(id) == Some(*version)), None),
            Self::Create(id, version, ttl, payload) => {
                model.insert(*id, (*version, now + ttl, payload.clone()));
                (1, None)
            }
            Self::Login(id, ..) if live(id).is_some() => (0, None),
            Self::Login(id, version, ttl, payload, (visitor, leaves)) => {
                model.retain(|other, there| match other.owner() {
                    None => (other, there.0) != (visitor, *leaves),
                    owner => owner != id.owner(),
                });
                model.insert(*id, (*version, now + ttl, payload.clone()));
                (1, None)
            }
            Self::Update(expected, id, version, ttl, payload) => match live(id) {
                None => (0, None),
                Some(there) if there != *expected => (0, Some(there)),
                Some(_) => {
                    model.insert(*id, (*version, now + ttl, payload.clone()));
                    (1, None)
                }
            },
            Self::Touch(id, version, ttl) => match live(id) {
                Some(there) if there == *version => {
                    model.entry(*id).and_modify(|there| there.1 = now + ttl);
                    (1, None)
                }
                _ => (0, None),
            },
            Self::Clear(id, Some(version)) if id.owner().is_some() && live(id) != Some(*version) => (0, live(id)),
            Self::Clear(id, by) if id.owner().is_some() => {
                let before = model.len();
                model.retain(|other, _| other.owner() != id.owner() || (by.is_some() && other == id));
                ((before - model.len()) as u64, None)
            }
            Self::Delete(id) | Self::Clear(id, _) => (model.remove(id).is_some().into(), None),
            Self::Expire => (0, None),
        }
    }
}

impl OpReply {
    /// How many records were changed.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Created(Created::Done { .. }) | Self::Updated(Outcome::Done) => 1,
            Self::Found(found) => u64::from(*found),
            Self::Cleared(Cleared::Done(ended)) => *ended,
            _ => 0,
        }
    }

    /// The version of the record that is in the way.
    fn conflict(&self) -> Option<i64> {
        match self {
            Self::Updated(Outcome::Conflict(there)) | Self::Cleared(Cleared::Conflict(there)) => Some(there.version),
            _ => None,
        }
    }
}

/// A file in use, driven by hand: no thread, so that the same seed gives the same calls.
pub(super) struct Rig {
    pub(super) disk: SimDisk,
    pub(super) writer: Writer,
    incoming: Incoming,
    cut: Option<Cut>,
}

impl Rig {
    pub(super) fn open(world: World, clock: &Clock) -> (SimDisk, Result<Self, Error>) {
        Self::open_with(world, clock, Durability::Sync)
    }

    fn open_with(world: World, clock: &Clock, durability: Durability) -> (SimDisk, Result<Self, Error>) {
        let disk = world.disk();
        let table = Arc::new(RwLock::new(Table::new(clock.clone())));
        let opened = recovery::open(&disk, &table).map(|Recovered { journal, cut }| {
            let (queue, incoming) = Queue::new();
            let mut writer = Writer::new(Arc::new(disk.clone()), table, Arc::new(queue), journal, durability);
            writer.storage.thresholds = Thresholds { dead: 1_500, sync: Duration::MAX / 4, retry: Duration::ZERO };
            Self { disk: disk.clone(), writer, incoming, cut }
        });
        (disk, opened)
    }

    pub(super) fn batch(&mut self, asks: &[Ask]) -> Vec<Result<OpReply, Error>> {
        self.answers(asks.iter().map(|ask| ask.clone().op()))
    }

    pub(super) fn answers(&mut self, ops: impl Iterator<Item = Op>) -> Vec<Result<OpReply, Error>> {
        let (requests, answers): (Vec<_>, Vec<_>) = ops
            .map(|op| {
                let (answer, answered) = oneshot::channel();
                (QueuedOp { op, answer }, answered)
            })
            .unzip();
        self.writer.commit(requests);
        answers.into_iter().map(|mut answer| answer.try_recv().expect("it was answered")).collect()
    }

    /// Begins a compaction if it is time for one, and lets it come as far as it can without us.
    pub(super) fn begin_upkeep(&mut self) {
        self.writer.storage.upkeep();
        if self.writer.storage.compaction.is_some() {
            self.writer.queue.take(&self.incoming, None);
        }
    }

    pub(super) fn contents(&self) -> FileModel {
        let (mut model, mut next, mut some) = (FileModel::new(), Some(0), Vec::new());
        while let Some(from) = next {
            next = read(&self.writer.storage.table).some(from, usize::MAX, &mut some);
        }
        for (id, kept) in some {
            model.insert(id, (kept.version, kept.time.until, kept.payload.bytes().clone()));
        }
        model
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.disk.world().bytes().unwrap().to_vec()
    }
}

fn live(mut model: FileModel, now: u64) -> FileModel {
    model.retain(|_, there| there.1 > now);
    model
}

fn ids() -> Vec<RecordId> {
    let owners = Owners::new("sessions", b"").unwrap();
    let sid = |i: u8| Sid::parse(&char::from(b'a' + i).to_string().repeat(22)).unwrap();
    (0..8).map(|i| RecordId::new((i > 1).then(|| owners.owner(if i < 5 { "ada" } else { "bob" })), sid(i))).collect()
}

fn create(id: RecordId, ttl: u64) -> Ask {
    Ask::Create(id, 1, ttl, r#"{"a":1}"#.into())
}

/// Runs a random script, and looks after each step whether everything is as it was answered; then again after the power
/// was cut. Gives the number of calls to the disk.
fn run(seed: u64, fault: Option<(u64, u64)>, power: Option<u64>) -> u64 {
    let mut random = Random(seed);
    let (clock, ids) = (Clock::manual(), ids());
    let mut world = World::new(seed ^ 1);
    (world.fault, world.power) = (fault, power);
    let (disk, rig) = Rig::open(world, &clock);
    let mut model = FileModel::new();
    let mut maybe: Vec<Unsure> = Vec::new();
    if let Ok(mut rig) = rig {
        for step in 0..25 {
            if random.chance(5) {
                clock.advance(Duration::from_millis(random.below(200)));
            }
            let asks: Vec<Ask> = (0..1 + random.below(4)).map(|_| Ask::random(&mut random, &model, &ids)).collect();
            let mut after = model.clone();
            let expected: Vec<_> = asks.iter().map(|ask| ask.apply(&mut after, clock.now_ms())).collect();
            let was_on = disk.world().image.is_none();
            let answers = rig.batch(&asks);
            let off_now = was_on && disk.world().image.is_some();
            match &answers[0] {
                Ok(_) => {
                    for (answer, expected) in answers.into_iter().zip(expected) {
                        let answer = answer.unwrap();
                        assert_eq!((answer.count(), answer.conflict()), expected);
                    }
                    model = after;
                    maybe.clear();
                }
                Err(error) => {
                    assert!(answers.iter().all(Result::is_err));
                    if error.to_string().contains("may or may not have been applied") {
                        maybe = vec![(clock.now_ms(), asks)];
                    } else if off_now {
                        maybe.push((clock.now_ms(), asks));
                    }
                }
            }
            assert_eq!(
                live(rig.contents(), clock.now_ms()),
                live(model.clone(), clock.now_ms()),
                "seed {seed} step {step}"
            );
            rig.begin_upkeep();
            if rig.writer.storage.outage.is_none() && disk.world().image.is_none() {
                maybe.clear();
            }
            if disk.world().image.is_some() {
                break;
            }
        }
        if random.chance(2) && disk.world().image.is_none() {
            let was_broken = rig.writer.storage.outage.is_some();
            if rig.writer.finish().is_ok() || !was_broken {
                maybe.clear();
            }
        }
    }
    let calls = disk.world().calls;
    let of = (seed, fault, power);
    if power.is_none() && random.chance(2) {
        let (world, model) = run_on(&disk, &model, &maybe, &clock, &mut random, of);
        check_image(world, &model, &[], &clock, of);
    } else {
        check_image(disk.after_power_cut(), &model, &maybe, &clock, of);
    }
    calls
}

/// Goes on after the process was killed, on a disk that was not: what the system shows may not be what is on it. Gives
/// what a power cut leaves some changes later, and what must be in it.
fn run_on(
    disk: &SimDisk,
    model: &FileModel,
    maybe: &[Unsure],
    clock: &Clock,
    random: &mut Random,
    of: impl std::fmt::Debug,
) -> (World, FileModel) {
    let mut world = disk.world().clone();
    world.fault = None;
    let (disk, rig) = Rig::open(world, clock);
    let mut rig = rig.unwrap();
    let found = rig.contents();
    let allowed = allowed(model, maybe, clock.now_ms());
    assert!(allowed.contains(&found), "{of:?}: {found:?} is none of {allowed:?}");
    let (mut model, ids) = (found, ids());
    for _ in 0..random.below(4) {
        let ask = Ask::random(random, &model, &ids);
        assert!(rig.batch(std::slice::from_ref(&ask))[0].is_ok());
        ask.apply(&mut model, clock.now_ms());
        rig.begin_upkeep();
    }
    (disk.after_power_cut(), model)
}

/// What may be there: what was answered, and of what was not, the first few.
fn allowed(model: &FileModel, maybe: &[Unsure], now: u64) -> Vec<FileModel> {
    let mut allowed = vec![live(model.clone(), now)];
    for (then, asks) in maybe {
        let mut model = model.clone();
        for ask in asks {
            ask.apply(&mut model, *then);
            allowed.push(live(model.clone(), now));
        }
    }
    allowed
}

/// Opens what a power cut left, in between losing power again, and compares.
fn check_image(image: World, model: &FileModel, maybe: &[Unsure], clock: &Clock, of: impl std::fmt::Debug) {
    let now = clock.now_ms();
    let allowed = allowed(model, maybe, now);
    let mut again = image.clone();
    again.power = Some(again.random.below(12));
    let (disk, _) = Rig::open(again, clock);
    let again = disk.after_power_cut();
    for image in [image, again] {
        let (disk, rig) = Rig::open(image, clock);
        let rig = rig.unwrap_or_else(|error| panic!("{of:?}: {error}"));
        let found = live(rig.contents(), now);
        assert!(allowed.contains(&found), "{of:?}: {found:?} is none of {allowed:?}");
        assert!(!disk.world().has_leftover());
    }
}

#[test]
fn random_operations_reopens_and_compactions_are_as_in_a_model() {
    let mut compactions = 0_u64;
    for seed in 0..60 {
        for durability in [Durability::Sync, Durability::Flush] {
            let mut random = Random(seed);
            let (clock, ids, mut model) = (Clock::manual(), ids(), FileModel::new());
            let (mut disk, rig) = Rig::open_with(World::new(seed), &clock, durability);
            let mut rig = rig.unwrap();
            for _ in 0..120 {
                match random.below(12) {
                    0 => clock.advance(Duration::from_millis(random.below(500))),
                    1 => {
                        // Closed, or only let go of: the system still has it all.
                        let is_closed = random.chance(2);
                        let Rig { writer, .. } = rig;
                        if is_closed {
                            writer.finish().unwrap()
                        } else {
                            drop(writer)
                        }
                        let world = disk.world().clone();
                        let (next, opened) = Rig::open_with(world, &clock, durability);
                        (disk, rig) = (next, opened.unwrap());
                        assert_eq!(rig.cut, None);
                    }
                    _ => {
                        let asks: Vec<Ask> =
                            (0..1 + random.below(5)).map(|_| Ask::random(&mut random, &model, &ids)).collect();
                        for (ask, answer) in asks.iter().zip(rig.batch(&asks)) {
                            let answer = answer.unwrap();
                            let expected = ask.apply(&mut model, clock.now_ms());
                            assert_eq!((answer.count(), answer.conflict()), expected, "{ask:?}");
                        }
                        let was_begun = rig.writer.storage.compaction.is_some();
                        rig.begin_upkeep();
                        compactions += u64::from(!was_begun && rig.writer.storage.compaction.is_some());
                    }
                }
                let now = clock.now_ms();
                assert_eq!(live(rig.contents(), now), live(model.clone(), now), "seed {seed}");
                assert!(disk.world().bytes().unwrap().len() < 20_000);
            }
        }
    }
    assert!(compactions > 100, "{compactions}");
}

#[test]
fn a_compaction_that_sees_later_changes_comes_to_the_same() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let (clock, ids, mut model) = (Clock::manual(), ids(), FileModel::new());
        let (disk, rig) = Rig::open(World::new(seed), &clock);
        let mut rig = rig.unwrap();
        rig.writer.storage.thresholds.dead = u64::MAX;
        let mut go_on = |rig: &mut Rig, random: &mut Random, steps: u64| {
            for _ in 0..steps {
                clock.advance(Duration::from_millis(random.below(20)));
                let ask = Ask::random(random, &model, &ids);
                assert!(rig.batch(std::slice::from_ref(&ask))[0].is_ok());
                ask.apply(&mut model, clock.now_ms());
                rig.begin_upkeep();
            }
        };
        go_on(&mut rig, &mut random, seed % 30);
        let from = rig.writer.storage.journal.good();
        go_on(&mut rig, &mut random, 20);
        // It began back then, and only now looks at the records.
        let mut beside = write_beside(&disk, &rig.writer.storage.table, from.n, &false.into()).unwrap();
        go_on(&mut rig, &mut random, 5);
        let (old, good) = (Arc::clone(rig.writer.storage.journal.file()), rig.writer.storage.journal.good());
        beside.copy(&*old, from.offset, good.offset).unwrap();
        disk.rename().unwrap();
        let (_, again) = Rig::open(disk.world().clone(), &clock);
        let now = clock.now_ms();
        assert_eq!(live(again.unwrap().contents(), now), live(model, now), "seed {seed}");
    }
}

#[test]
fn with_any_call_to_the_disk_failing_what_was_answered_holds() {
    for seed in 0..12 {
        let calls = run(seed, None, None);
        for call in 0..calls {
            for count in [1, 2, 3, 7] {
                run(seed, Some((call, count)), None);
            }
        }
    }
}

#[test]
fn with_the_power_cut_at_any_call_to_the_disk_what_was_answered_holds() {
    for seed in 100..130 {
        let calls = run(seed, None, None);
        for call in 0..calls {
            run(seed, None, Some(call));
            // And while it deals with a fault.
            run(seed, Some((call.saturating_sub(1 + call % 7), 1 + call % 3)), Some(call));
        }
    }
}

/// A file with some batches in it, the last of them of several pages, and where that begins.
fn file_with_a_long_last_batch(clock: &Clock, end_it: bool) -> (Vec<u8>, usize, FileModel, FileModel) {
    let (_, rig) = Rig::open(World::new(7), clock);
    let mut rig = rig.unwrap();
    rig.writer.storage.thresholds.dead = u64::MAX;
    let (ids, mut random, mut model) = (ids(), Random(3), FileModel::new());
    let batch = |rig: &mut Rig, model: &mut FileModel, random: &mut Random, count: usize| {
        let asks: Vec<Ask> = (0..count).map(|_| Ask::random(random, model, &ids)).collect();
        for (ask, answer) in asks.iter().zip(rig.batch(&asks)) {
            answer.unwrap();
            ask.apply(model, clock.now_ms());
        }
    };
    for count in [1, 3, 2, 1] {
        batch(&mut rig, &mut model, &mut random, count);
        rig.begin_upkeep();
    }
    let (start, before) = (rig.bytes().len(), model.clone());
    let ask = |n: i64| {
        Ask::Create(RecordId::new(None, Sid::parse(&format!("{n:022}")).unwrap()), n, 1_000, r#"{"a":1}"#.into())
    };
    let asks: Vec<Ask> = (0..4).map(ask).collect();
    for (ask, answer) in asks.iter().zip(rig.batch(&asks)) {
        answer.unwrap();
        ask.apply(&mut model, clock.now_ms());
    }
    if end_it {
        rig.begin_upkeep();
    }
    let bytes = rig.bytes();
    (bytes, start, before, model)
}

#[test]
fn a_file_cut_at_any_byte_has_every_whole_line_and_no_other() {
    let clock = Clock::manual();
    let (bytes, ..) = file_with_a_long_last_batch(&clock, true);
    let mut whole = None;
    let mut found = 0;
    for end in 0..=bytes.len() {
        let (disk, rig) = Rig::open(World::with(&bytes[..end]), &clock);
        let head = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        if end > 0 && end <= head {
            // The first line was there before the file was: this is no crash.
            assert!(matches!(rig.err().unwrap().kind(), ErrorKind::Unreadable | ErrorKind::Config));
            assert_eq!(disk.world().bytes().unwrap(), &bytes[..end]);
            continue;
        }
        let rig = rig.unwrap();
        let is_whole = end == 0 || bytes[end - 1] == b'\n';
        assert_eq!(rig.cut.is_none(), is_whole, "{end}");
        if is_whole {
            found += 1;
            whole = Some(rig.contents());
        }
        assert_eq!(Some(rig.contents()), whole);
        // And it can be used as if nothing had been.
        let mut rig = rig;
        let ask = Ask::Create(RecordId::new(None, Sid::parse(&"z".repeat(22)).unwrap()), 1, 1_000, "{}".into());
        assert_eq!(rig.batch(&[ask])[0].as_ref().unwrap().count(), 1);
        let with_it = rig.contents();
        let (_, again) = Rig::open(World::with(&rig.bytes()), &clock);
        let again = again.unwrap();
        assert_eq!((again.cut, again.contents()), (None, with_it));
    }
    assert!(found > 10);
}

#[test]
fn with_any_pages_of_the_last_batch_zeroed_the_batches_before_are_whole() {
    let clock = Clock::manual();
    let (bytes, start, before, after) = file_with_a_long_last_batch(&clock, false);
    let pages: Vec<usize> = (start / PAGE..bytes.len().div_ceil(PAGE)).collect();
    assert!((8..=14).contains(&pages.len()), "{}", pages.len());
    for subset in 0..1_u32 << pages.len() {
        let mut bytes = bytes.clone();
        for (i, page) in pages.iter().enumerate() {
            if subset & (1 << i) != 0 {
                let end = ((page + 1) * PAGE).min(bytes.len());
                bytes[(page * PAGE).max(start)..end].fill(0);
            }
        }
        let (_, rig) = Rig::open(World::with(&bytes), &clock);
        let rig = rig.unwrap();
        let mut found = rig.contents();
        if subset == 0 {
            assert_eq!(found, live(after.clone(), clock.now_ms()));
        }
        found.retain(|id, _| before.contains_key(id) || !after.contains_key(id));
        assert_eq!(found, live(before.clone(), clock.now_ms()));
        assert_eq!(rig.cut.is_some(), subset != 0);
        let (_, again) = Rig::open(World::with(&rig.bytes()), &clock);
        assert_eq!(again.unwrap().cut, None);
    }
}

#[test]
fn a_bit_flipped_anywhere_loses_nothing_in_silence() {
    let clock = Clock::manual();
    let (bytes, _, _, model) = file_with_a_long_last_batch(&clock, true);
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (disk, rig) = Rig::open(World::with(&flipped), &clock);
        let line = 1 + bytes[..bit / 8].iter().filter(|byte| **byte == b'\n').count();
        match rig {
            // Only what says that the rest was synced.
            Ok(rig) => {
                assert!(bit / 8 >= last, "{bit}");
                assert_eq!(rig.contents(), live(model.clone(), clock.now_ms()));
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains(&format!("line {line} of sessions.json"))
                        || (line == 1 && text.contains("not written by this crate")),
                    "{text}"
                );
                assert_eq!(disk.world().bytes().unwrap(), flipped);
            }
        }
    }
}

#[test]
fn a_file_deleted_in_use_takes_no_changes_and_is_not_made_anew() {
    let (_, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    let create = |i: usize| Ask::Create(ids()[i], 1, 1_000, "{}".into());
    assert!(rig.batch(&[create(0)])[0].is_ok());
    rig.disk.world().delete();
    let error = rig.batch(&[create(1)]).remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("deleted"), "{error}");
    assert_eq!(rig.contents().len(), 1);
    rig.writer.storage.start_compaction();
    rig.begin_upkeep();
    rig.writer.storage.upkeep();
    assert!(rig.disk.world().bytes().is_none());
    assert!(rig.writer.finish().is_err());
}

/// A login whose answer was lost, and that was ended before it was tried again.
#[test]
fn a_retry_brings_nothing_back_that_was_made_and_ended_in_one_batch() {
    let (_, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    let (first, second) = (ids()[2], ids()[3]);
    for (id, end) in [(first, Ask::Delete(first)), (second, Ask::Clear(second, None))] {
        let answers = rig.batch(&[create(id, 1_000), end]);
        assert_eq!(answers.iter().map(|answer| answer.as_ref().unwrap().count()).collect::<Vec<_>>(), [1, 1]);
        let Op::Create { new, .. } = create(id, 1_000).op() else { unreachable!() };
        let terms = TermsAt::new(Terms { retry: true, ..Terms::default() }, || Duration::ZERO).into();
        assert!(rig.answers([Op::Create { new, terms }].into_iter())[0].is_err());
        assert!(rig.contents().is_empty());
    }
}

#[test]
fn after_a_fault_that_could_not_be_undone_changes_wait_for_a_new_file() {
    let (disk, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    rig.writer.storage.thresholds.retry = Duration::from_secs(1 << 30);
    let create = |i: usize| Ask::Create(ids()[i], 1, 1_000, "{}".into());
    assert!(rig.batch(&[create(0)])[0].is_ok());
    let fail = |disk: &SimDisk, count: u64| {
        let mut world = disk.world();
        world.fault = Some((world.calls + 1, count));
    };
    // The sync fails, and then cutting back does.
    fail(&disk, 2);
    let error = rig.batch(&[create(1)]).remove(0).unwrap_err();
    assert!(error.to_string().contains("may or may not have been applied"), "{error}");
    // The first try to write it anew fails too, and then there is none for a while.
    fail(&disk, 1);
    for _ in 0..2 {
        let error = rig.batch(&[create(2)]).remove(0).unwrap_err();
        assert!(error.to_string().contains("accepts no changes"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(rig.contents().len(), 1);
    }
    rig.writer.storage.outage.as_mut().unwrap().retry_now();
    assert!(rig.batch(&[create(2)])[0].is_ok());
    assert_eq!(rig.contents().len(), 2);
}

#[test]
fn after_a_fault_that_was_undone_the_file_says_again_what_is_on_the_disk() {
    let clock = Clock::manual();
    let (disk, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    let create = |i: usize| Ask::Create(ids()[i], 1, 1_000, "{}".into());
    assert!(rig.batch(&[create(0)])[0].is_ok());
    rig.begin_upkeep();
    let before = rig.bytes();
    // The sync fails, and cutting back takes along what was said before.
    {
        let mut world = disk.world();
        world.fault = Some((world.calls + 1, 1));
    }
    let error = rig.batch(&[create(1)]).remove(0).unwrap_err();
    assert!(error.to_string().contains("nothing was applied"), "{error}");
    assert!(rig.bytes().len() < before.len());
    rig.begin_upkeep();
    assert_eq!(rig.bytes(), before);
}

#[test]
fn what_nobody_waits_for_is_not_done_unless_it_ends_something() {
    let (_, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    let id = ids()[0];
    assert!(rig.batch(&[Ask::Create(id, 1, 1_000, "{}".into())])[0].is_ok());
    let unheard = |rig: &mut Rig, ask: Ask| {
        let (answer, nobody) = oneshot::channel();
        drop(nobody);
        rig.writer.commit(vec![QueuedOp { op: ask.op(), answer }]);
    };
    unheard(&mut rig, Ask::Update(1, id, 2, 1_000, "{}".into()));
    assert_eq!(rig.contents()[&id].0, 1);
    unheard(&mut rig, Ask::Update(1, id, 2, 0, "{}".into()));
    assert!(rig.contents().is_empty());
}

/// Killed between `rename` and the sync of the folder; started again; changes acknowledged; then the power fails.
#[test]
fn a_rename_whose_folder_was_never_synced_is_synced_at_the_next_open() {
    let mut lost = 0;
    for seed in 0..40 {
        let clock = Clock::manual();
        let (disk, rig) = Rig::open(World::new(seed), &clock);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
        // A compaction, up to the rename.
        drop(
            write_beside(&disk, &rig.writer.storage.table, rig.writer.storage.journal.end().n, &false.into()).unwrap(),
        );
        disk.rename().unwrap();
        // SIGKILL.
        let world = disk.world().clone();
        drop(rig);
        let (disk, rig) = Rig::open(world, &clock);
        let mut rig = rig.unwrap();
        for id in &ids()[1..4] {
            assert!(rig.batch(&[create(*id, 100_000)])[0].is_ok(), "acknowledged");
        }
        let (_, again) = Rig::open(disk.after_power_cut(), &clock);
        lost += usize::from(again.unwrap().contents().len() != 4);
    }
    assert_eq!(lost, 0, "of 40 power cuts, so many lost acknowledged sessions");
}

/// The same for the very first file: then everything is gone.
#[test]
fn a_first_file_whose_folder_was_never_synced_is_synced_at_the_next_open() {
    let mut lost = 0;
    for seed in 0..40 {
        let clock = Clock::manual();
        let disk = World::new(seed).disk();
        let table = RwLock::new(Table::new(clock.clone()));
        drop(write_beside(&disk, &table, 0, &false.into()).unwrap());
        disk.rename().unwrap();
        let (disk, rig) = Rig::open(disk.world().clone(), &clock);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok(), "acknowledged");
        let (_, again) = Rig::open(disk.after_power_cut(), &clock);
        lost += usize::from(again.unwrap().contents().len() != 1);
    }
    assert_eq!(lost, 0, "of 40 power cuts, so many lost everything");
}

/// `> sessions.json`, `cp backup.json sessions.json`, copytruncate: the same file, and another length.
#[test]
fn a_file_cut_in_its_place_is_written_anew_before_anything_is_acknowledged() {
    for (len, is_marked) in [(0, false), (0, true), (100, true), (1 << 12, true)] {
        let clock = Clock::manual();
        let (disk, rig) = Rig::open(World::new(1), &clock);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[0], 1_000)])[0].is_ok());
        if is_marked {
            rig.begin_upkeep();
        }
        disk.world().cut(len);
        // Nothing is marked behind the hole.
        rig.begin_upkeep();
        assert!(rig.batch(&[create(ids()[1], 1_000)])[0].is_ok());
        assert_eq!(rig.contents().len(), 2);
        let (_, again) = Rig::open(disk.after_power_cut(), &clock);
        assert_eq!(again.unwrap().contents().len(), 2);
    }
}

#[test]
fn with_the_file_cut_at_any_call_to_the_disk_nothing_that_was_acknowledged_is_lost() {
    for seed in 0..8 {
        let calls = run_with_cut(seed, None);
        for call in 0..calls {
            for len in [0, 90, 700] {
                run_with_cut(seed, Some((call, len)));
            }
        }
    }
}

/// Runs a random script while another program cuts the file once, closes the file and opens it again. Gives the number of
/// calls to the disk.
fn run_with_cut(seed: u64, cut: Option<(u64, usize)>) -> u64 {
    let mut random = Random(seed);
    let (clock, ids, mut model) = (Clock::manual(), ids(), FileModel::new());
    let mut world = World::new(seed);
    world.cut = cut;
    let (disk, rig) = Rig::open(world, &clock);
    let mut rig = rig.unwrap();
    for _ in 0..25 {
        let asks: Vec<Ask> = (0..1 + random.below(4)).map(|_| Ask::random(&mut random, &model, &ids)).collect();
        for (ask, answer) in asks.iter().zip(rig.batch(&asks)) {
            let expected = ask.apply(&mut model, clock.now_ms());
            let answer = answer.unwrap();
            assert_eq!((answer.count(), answer.conflict()), expected, "seed {seed}, cut {cut:?}: {ask:?}");
        }
        rig.begin_upkeep();
    }
    rig.writer.finish().unwrap();
    let calls = disk.world().calls;
    assert!(cut.is_none_or(|(at, _)| at < calls), "seed {seed}, cut {cut:?}: it was not cut");
    check_image(disk.after_power_cut(), &model, &[], &clock, (seed, cut));
    calls
}

/// A user's data holds what looks like a line; the file is torn just behind it.
#[test]
fn a_tail_torn_within_data_that_looks_like_a_line_is_cut() {
    let clock = Clock::manual();
    let (_, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    let before = rig.bytes().len();
    let mut planted = Vec::new();
    Line::Synced { moment: None }.write(Some(Place { n: 1 << 40, synced: 1 << 40 }), &mut planted);
    planted.pop();
    let payload = [br#"{"v":1,"data":{"list":["#.as_slice(), &planted, b"]}}"].concat();
    assert!(rig.batch(&[Ask::Create(ids()[1], 1, 100_000, payload.into())])[0].is_ok());
    let bytes = rig.bytes();
    let mut refused = Vec::new();
    for end in before..bytes.len() {
        let (_, again) = Rig::open(World::with(&bytes[..end]), &clock);
        if let Err(error) = again {
            refused.push((end, error.to_string()));
        }
    }
    assert!(refused.is_empty(), "{refused:?}");
}

pub(super) type DiskHook = Box<dyn Fn() + Send>;

/// A disk on which something else happens while it syncs, and whose rename fails if asked to.
#[derive(Clone)]
pub(super) struct Hooked {
    disk: SimDisk,
    pub(super) on_sync: Arc<Mutex<Option<DiskHook>>>,
    rename_fails: Arc<Mutex<bool>>,
    /// The next rename happens, and says it has not; and then nothing can be asked for a moment.
    rename_is_unsure: Arc<Mutex<u8>>,
    /// As on Windows: no file can be told from another.
    is_blind: bool,
}

struct HookedFile(Arc<dyn Handle>, Hooked);

impl Hooked {
    pub(super) fn new(disk: SimDisk, is_blind: bool) -> Self {
        Self { disk, on_sync: Arc::default(), rename_fails: Arc::default(), rename_is_unsure: Arc::default(), is_blind }
    }
    fn wrap(&self, file: Arc<dyn Handle>) -> Arc<dyn Handle> {
        Arc::new(HookedFile(file, self.clone()))
    }
}

impl Disk for Hooked {
    fn open(&self) -> io::Result<Option<Arc<dyn Handle>>> {
        Ok(self.disk.open()?.map(|file| self.wrap(file)))
    }
    fn beside(&self) -> io::Result<Arc<dyn Handle>> {
        Ok(self.wrap(self.disk.beside()?))
    }
    fn remove_beside(&self) -> io::Result<()> {
        self.disk.remove_beside()
    }
    fn rename(&self) -> io::Result<()> {
        if *self.rename_fails.lock().unwrap() {
            return Err(io::Error::other("in use by the virus scanner"));
        }
        let mut unsure = self.rename_is_unsure.lock().unwrap();
        if *unsure == 1 {
            *unsure = 2;
            self.disk.rename()?;
            return Err(io::Error::other("the server did not answer"));
        }
        self.disk.rename()
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.disk.sync_folder()
    }
    fn leads_to(&self, file: &dyn Handle) -> io::Result<bool> {
        let mut unsure = self.rename_is_unsure.lock().unwrap();
        if *unsure == 2 {
            *unsure = 0;
            return Err(io::Error::other("the server did not answer"));
        }
        drop(unsure);
        if self.is_blind { Ok(self.disk.world().bytes().is_some()) } else { self.disk.leads_to(file) }
    }
    fn path(&self) -> &Path {
        Path::new("sessions.json")
    }
}

impl Handle for HookedFile {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(bytes, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(bytes, at)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn allocate(&self, from: u64, len: u64) -> io::Result<()> {
        self.0.allocate(from, len)
    }
    fn sync(&self) -> io::Result<()> {
        if let Some(hook) = &*self.1.on_sync.lock().unwrap() {
            hook();
        }
        self.0.sync()
    }
    fn keep_private(&self) -> io::Result<()> {
        Ok(())
    }
    fn identity(&self) -> io::Result<FileIdentity> {
        self.0.identity()
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

pub(super) fn hooked(hooked: &Hooked, clock: &Clock, durability: Durability) -> Rig {
    let table = Arc::new(RwLock::new(Table::new(clock.clone())));
    let Recovered { journal, cut } = recovery::open(hooked, &table).unwrap();
    let (queue, incoming) = Queue::new();
    let mut writer = Writer::new(Arc::new(hooked.clone()), table, Arc::new(queue), journal, durability);
    writer.storage.thresholds = Thresholds { dead: 1_500, sync: Duration::MAX / 4, retry: Duration::ZERO };
    Rig { disk: hooked.disk.clone(), writer, incoming, cut }
}

/// Readers have seen it expired while the touch was being synced; then it is there again.
#[test]
fn what_was_seen_expired_is_not_revived_by_a_change_that_was_being_synced() {
    for update in [false, true] {
        let clock = Clock::manual();
        let disk = Hooked::new(World::new(1).disk(), false);
        let mut rig = hooked(&disk, &clock, Durability::Sync);
        let id = ids()[0];
        assert!(rig.batch(&[create(id, 1_000)])[0].is_ok());
        clock.advance(Duration::from_millis(900));
        let seen = Arc::new(Mutex::new(None));
        let (table, at, saw) = (Arc::clone(&rig.writer.storage.table), clock.clone(), Arc::clone(&seen));
        *disk.on_sync.lock().unwrap() = Some(Box::new(move || {
            at.advance(Duration::from_millis(200));
            let table = read(&table);
            *saw.lock().unwrap() = Some(matches!(table.load(id), Lookup::Live(_)));
        }));
        let ask = if update { Ask::Update(1, id, 2, 5_000, "{}".into()) } else { Ask::Touch(id, 1, 5_000) };
        let answer = rig.batch(&[ask]).remove(0).unwrap();
        assert_eq!(*seen.lock().unwrap(), Some(false), "it was seen expired");
        assert_eq!((answer.count(), rig.contents()), (0, FileModel::new()), "update {update}");
        // Nor does it come back by a clock that is put right.
        let (_, again) = Rig::open(rig.disk.world().clone(), &Clock::manual());
        assert!(again.unwrap().contents().is_empty());
    }
}

/// `delete` and `clear` of what has expired write nothing; a crash and a clock that was put right bring it back.
#[test]
fn what_was_answered_as_gone_stays_gone_when_the_clock_is_put_right() {
    for ask in [Ask::Delete(ids()[2]), Ask::Clear(ids()[2], None)] {
        // Two hours ahead, until ntpd has been.
        let ahead = Clock::manual();
        ahead.advance(Duration::from_secs(7_200));
        let (disk, rig) = Rig::open(World::new(1), &ahead);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[2], 3_600_000)])[0].is_ok());
        ahead.advance(Duration::from_secs(3_601));
        assert!(live(rig.contents(), ahead.now_ms()).is_empty());
        assert_eq!(rig.batch(std::slice::from_ref(&ask))[0].as_ref().unwrap().count(), 0);
        // SIGKILL, and started again by the right time.
        let (_, again) = Rig::open(disk.world().clone(), &Clock::manual());
        assert!(again.unwrap().contents().is_empty(), "{ask:?}: revived, with its whole time to live");
    }
}

/// Neither what expired in use, nor what `open` found expired.
#[test]
fn what_a_clean_end_left_as_expired_does_not_come_back() {
    let (disk, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(ids()[2], 3_600_000)])[0].is_ok());
    rig.writer.finish().unwrap();
    let ahead = Clock::manual();
    ahead.advance(Duration::from_secs(7_200));
    let (disk, rig) = Rig::open(disk.world().clone(), &ahead);
    let mut rig = rig.unwrap();
    assert_eq!(rig.batch(&[Ask::Clear(ids()[2], None)])[0].as_ref().unwrap().count(), 0);
    rig.writer.finish().unwrap();
    let (_, again) = Rig::open(disk.world().clone(), &Clock::manual());
    assert!(again.unwrap().contents().is_empty(), "revived");
}

/// As on Windows, where every file is the same one: a rename that fails costs the file that was in order.
#[test]
fn where_files_cannot_be_told_apart_a_failed_rename_leaves_the_old_file_in_use() {
    let clock = Clock::manual();
    let disk = Hooked::new(World::new(3).disk(), true);
    let mut rig = hooked(&disk, &clock, Durability::Sync);
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    *disk.rename_fails.lock().unwrap() = true;
    rig.writer.storage.start_compaction();
    rig.begin_upkeep();
    rig.writer.storage.upkeep();
    let answer = rig.batch(&[create(ids()[1], 100_000)]).remove(0);
    assert!(answer.is_ok(), "the old file is whole and in its place, but: {}", answer.unwrap_err());
}

/// A rename that happened and said it had not, as over a network, and then a moment without answers.
#[test]
fn after_a_rename_of_which_nothing_is_known_changes_are_taken_again() {
    let clock = Clock::manual();
    let disk = Hooked::new(World::new(3).disk(), false);
    let mut rig = hooked(&disk, &clock, Durability::Sync);
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    *disk.rename_is_unsure.lock().unwrap() = 1;
    rig.writer.storage.start_compaction();
    rig.begin_upkeep();
    rig.writer.storage.upkeep();
    assert!(rig.writer.storage.compaction.is_none());
    let mut last = None;
    for _ in 0..5 {
        rig.writer.storage.upkeep();
        last = Some(rig.batch(&[create(ids()[1], 100_000)]).remove(0));
    }
    assert!(last.as_ref().unwrap().is_ok(), "for ever: {}", last.unwrap().unwrap_err());
}

/// What `run` does, with `Flush`: a kill loses nothing that was answered, a power cut leaves some prefix.
#[test]
fn with_flush_and_faults_a_kill_loses_nothing_and_a_power_cut_leaves_what_there_was_once() {
    let mut broken = 0;
    for seed in 0..20_u64 {
        for call in 0..90_u64 {
            let mut random = Random(seed * 1_000 + call);
            let (clock, ids) = (Clock::manual(), ids());
            let mut world = World::new(seed ^ call);
            world.fault = Some((call, 1 + random.below(4)));
            let (disk, rig) = Rig::open_with(world, &clock, Durability::Flush);
            let Ok(mut rig) = rig else { continue };
            let (mut model, mut history, mut maybe) = (FileModel::new(), vec![FileModel::new()], Vec::new());
            for _ in 0..14 {
                let asks: Vec<Ask> = (0..1 + random.below(3)).map(|_| Ask::random(&mut random, &model, &ids)).collect();
                let answers = rig.batch(&asks);
                if answers[0].is_ok() {
                    maybe.clear();
                    for ask in &asks {
                        ask.apply(&mut model, clock.now_ms());
                        history.push(live(model.clone(), clock.now_ms()));
                    }
                } else {
                    assert!(answers.iter().all(Result::is_err));
                    if answers[0].as_ref().unwrap_err().to_string().contains("may or may not have been applied") {
                        maybe = vec![(clock.now_ms(), asks)];
                    }
                }
                assert_eq!(live(rig.contents(), clock.now_ms()), live(model.clone(), clock.now_ms()));
                if random.chance(3) {
                    // The second is over.
                    rig.writer.storage.thresholds.sync = Duration::ZERO;
                    rig.writer.storage.last_sync = Instant::now() - Duration::from_secs(1);
                }
                rig.begin_upkeep();
                rig.writer.storage.thresholds.sync = Duration::MAX / 8;
                if rig.writer.storage.outage.is_none() {
                    maybe.clear();
                } else {
                    broken += 1;
                }
            }
            let now = clock.now_ms();
            // Killed: the system shows everything.
            let mut world = disk.world().clone();
            world.fault = None;
            let (_, again) = Rig::open_with(world.clone(), &clock, Durability::Flush);
            let found = again.unwrap_or_else(|error| panic!("seed {seed} call {call}: {error}")).contents();
            assert!(allowed(&model, &maybe, now).contains(&found), "killed: seed {seed} call {call}");
            // Power cut: some prefix.
            let (_, again) = Rig::open_with(world.after_power_cut(), &clock, Durability::Flush);
            let found = again.unwrap_or_else(|error| panic!("power: seed {seed} call {call}: {error}")).contents();
            let ok = history.contains(&found) || allowed(&model, &maybe, now).contains(&found);
            assert!(ok, "power cut: seed {seed} call {call}: {found:?}");
        }
    }
    assert!(broken > 10, "{broken}");
}

#[test]
fn a_file_that_cannot_be_kept_from_others_is_refused() {
    let clock = Clock::manual();
    let (bytes, ..) = file_with_a_long_last_batch(&clock, true);
    let mut world = World::with(&bytes);
    world.is_foreign = true;
    let (disk, rig) = Rig::open(world, &clock);
    assert_eq!(rig.err().unwrap().kind(), ErrorKind::Config);
    assert_eq!(disk.world().bytes().unwrap(), bytes);
}

#[tokio::test]
async fn p18_a_wall_clock_that_is_set_back_in_use_revives_and_lengthens_nothing() {
    let clock = Clock::adjustable();
    let folder = std::env::temp_dir().join(format!("jam-session-set-back-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let builder = JsonSessions::builder(folder.join("sessions.json")).request_time(Duration::from_secs(60));
    let builder = builder.clock(clock.clone()).default_ttl(None).max_lifetime(TWO_HOURS);
    let sessions = builder.open().await.unwrap();
    nothing_comes_back(&sessions, &clock).await;
    sessions.close().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
