//! What a hostile review found.

use std::{io, path::Path, sync::Mutex};

use super::{
    super::{
        disk::{Handle, Identity},
        line::{Line, Place},
    },
    *,
};

type Hook = Box<dyn Fn() + Send>;

/// A disk on which something else happens while it syncs, and whose rename fails if asked to.
#[derive(Clone)]
struct Hooked {
    disk: SimDisk,
    on_sync: Arc<Mutex<Option<Hook>>>,
    rename_fails: Arc<Mutex<bool>>,
    /// The next rename happens, and says it has not; and then nothing can be asked for a moment.
    rename_is_unsure: Arc<Mutex<u8>>,
    /// As on Windows: no file can be told from another.
    is_blind: bool,
}

struct HookedFile(Arc<dyn Handle>, Hooked);

impl Hooked {
    fn new(disk: SimDisk, is_blind: bool) -> Self {
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
    fn sync(&self) -> io::Result<()> {
        if let Some(hook) = &*self.1.on_sync.lock().unwrap() {
            hook();
        }
        self.0.sync()
    }
    fn keep_private(&self) -> io::Result<()> {
        Ok(())
    }
    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

fn hooked(hooked: &Hooked, clock: &Clock, durability: Durability) -> Rig {
    let table = Arc::new(RwLock::new(Table::new(clock.clone())));
    let Opened { journal, cut } = replay::open(hooked, &table).unwrap();
    let mut writer = Writer::new(Arc::new(hooked.clone()), table, Arc::default(), journal, durability);
    writer.limits = Limits { dead: 1_500, sync: Duration::MAX / 4, retry: Duration::ZERO };
    Rig { disk: hooked.disk.clone(), writer, cut }
}

fn create(id: RecordId, ttl: u64) -> Ask {
    Ask::Create(id, 1, ttl, r#"{"a":1}"#.into())
}

/// Killed between `rename` and the sync of the folder; started again; changes acknowledged; then the power fails.
#[test]
fn r01_a_rename_whose_folder_was_never_synced_is_synced_at_the_next_open() {
    let mut lost = 0;
    for seed in 0..40 {
        let clock = Clock::manual();
        let (disk, rig) = Rig::open(World::new(seed), &clock);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
        // A compaction, up to the rename.
        drop(write_beside(&disk, &rig.writer.table, rig.writer.journal.end().n, &false.into()).unwrap());
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
fn r01b_a_first_file_whose_folder_was_never_synced_is_synced_at_the_next_open() {
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

/// Readers have seen it expired while the touch was being synced; then it is there again.
#[test]
fn r02_what_was_seen_expired_is_not_revived_by_a_change_that_was_being_synced() {
    for update in [false, true] {
        let clock = Clock::manual();
        let disk = Hooked::new(World::new(1).disk(), false);
        let mut rig = hooked(&disk, &clock, Durability::Sync);
        let id = ids()[0];
        assert!(rig.batch(&[create(id, 1_000)])[0].is_ok());
        clock.advance(Duration::from_millis(900));
        let seen = Arc::new(Mutex::new(None));
        let (table, at, saw) = (Arc::clone(&rig.writer.table), clock.clone(), Arc::clone(&seen));
        *disk.on_sync.lock().unwrap() = Some(Box::new(move || {
            at.advance(Duration::from_millis(200));
            let table = read(&table);
            *saw.lock().unwrap() = Some(table.load(id, table.now()).is_some());
        }));
        let ask = if update { Ask::Update(1, id, 2, 5_000, "{}".into()) } else { Ask::Touch(id, 1, 5_000) };
        let answer = rig.batch(&[ask]).remove(0).unwrap();
        assert_eq!(*seen.lock().unwrap(), Some(false), "it was seen expired");
        assert!(answer.count == 0 || rig.contents().is_empty(), "update {update}: revived");
    }
}

/// `delete` and `clear` of what has expired write nothing; a crash and a clock that was put right bring it back.
#[test]
fn r03_what_was_answered_as_gone_stays_gone_when_the_clock_is_put_right() {
    for ask in [Ask::Delete(ids()[2]), Ask::Clear(ids()[2], None)] {
        // Two hours ahead, until ntpd has been.
        let ahead = Clock::manual();
        ahead.advance(Duration::from_secs(7_200));
        let (disk, rig) = Rig::open(World::new(1), &ahead);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(ids()[2], 3_600_000)])[0].is_ok());
        ahead.advance(Duration::from_secs(3_601));
        assert!(live(rig.contents(), ahead.now_ms()).is_empty());
        assert_eq!(rig.batch(&[ask.clone()])[0].as_ref().unwrap().count, 0);
        // SIGKILL, and started again by the right time.
        let (_, again) = Rig::open(disk.world().clone(), &Clock::manual());
        assert!(again.unwrap().contents().is_empty(), "{ask:?}: revived, with its whole time to live");
    }
}

/// `finish` says that it sees to this: not to what `open` dropped.
#[test]
fn r03b_what_a_clean_end_left_as_expired_does_not_come_back() {
    let (disk, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(ids()[2], 3_600_000)])[0].is_ok());
    rig.writer.finish().unwrap();
    let ahead = Clock::manual();
    ahead.advance(Duration::from_secs(7_200));
    let (disk, rig) = Rig::open(disk.world().clone(), &ahead);
    let mut rig = rig.unwrap();
    assert_eq!(rig.batch(&[Ask::Clear(ids()[2], None)])[0].as_ref().unwrap().count, 0);
    rig.writer.finish().unwrap();
    let (_, again) = Rig::open(disk.world().clone(), &Clock::manual());
    assert!(again.unwrap().contents().is_empty(), "revived");
}

/// A user's data holds what looks like a line; the file is torn just behind it.
#[test]
fn r04_a_tail_torn_within_data_that_looks_like_a_line_is_cut() {
    let clock = Clock::manual();
    let (_, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    let before = rig.bytes().len();
    let mut planted = Vec::new();
    Line::Synced.write(Some(Place { n: 1 << 40, synced: 1 << 40 }), &mut planted);
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

/// As on Windows, where every file is the same one: a rename that fails costs the file that was in order.
#[test]
fn r05_where_files_cannot_be_told_apart_a_failed_rename_leaves_the_old_file_in_use() {
    let clock = Clock::manual();
    let disk = Hooked::new(World::new(3).disk(), true);
    let mut rig = hooked(&disk, &clock, Durability::Sync);
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    *disk.rename_fails.lock().unwrap() = true;
    rig.writer.start_compaction();
    rig.begin_upkeep();
    rig.writer.upkeep();
    let answer = rig.batch(&[create(ids()[1], 100_000)]).remove(0);
    assert!(answer.is_ok(), "the old file is whole and in its place, but: {}", answer.unwrap_err());
}

/// What `run` does, with `Flush`: a kill loses nothing that was answered, a power cut leaves some prefix.
#[test]
fn r06_flush_under_faults() {
    let mut broken = 0;
    for seed in 0..60_u64 {
        for call in 0..90_u64 {
            let mut random = Random(seed * 1_000 + call);
            let (clock, ids) = (Clock::manual(), ids());
            let mut world = World::new(seed ^ call);
            world.fault = Some((call, 1 + random.below(4)));
            let (disk, rig) = Rig::open_with(world, &clock, Durability::Flush);
            let Ok(mut rig) = rig else { continue };
            let (mut model, mut history, mut maybe) = (Model::new(), vec![Model::new()], Vec::new());
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
                    if answers[0].as_ref().unwrap_err().to_string().contains("may be found there or not") {
                        maybe = vec![(clock.now_ms(), asks)];
                    }
                }
                assert_eq!(live(rig.contents(), clock.now_ms()), live(model.clone(), clock.now_ms()));
                if random.chance(3) {
                    // The second is over.
                    rig.writer.limits.sync = Duration::ZERO;
                    rig.writer.last_sync = std::time::Instant::now() - Duration::from_secs(1);
                }
                rig.begin_upkeep();
                rig.writer.limits.sync = Duration::MAX / 8;
                if rig.writer.broken.is_none() {
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

/// Clears that come with many other changes look at all of those, each.
#[test]
fn r07_a_batch_of_clears_is_not_quadratic() {
    let owners = Owners::new("sessions", b"").unwrap();
    let took = |count: u64| {
        let (_, rig) = Rig::open(World::new(1), &Clock::manual());
        let mut rig = rig.unwrap();
        let mut asks = Vec::new();
        for n in 0..count {
            let id = RecordId::new(Some(owners.owner(&format!("user{n}"))), Sid::random().unwrap());
            asks.push(create(id, 100_000));
        }
        for n in 0..count {
            let id = RecordId::new(Some(owners.owner(&format!("other{n}"))), Sid::random().unwrap());
            asks.push(Ask::Clear(id, None));
        }
        let start = std::time::Instant::now();
        assert!(rig.batch(&asks)[0].is_ok());
        start.elapsed()
    };
    let (one, eight) = (took(1_500), took(12_000));
    assert!(eight < 20 * one, "1,500 of each: {one:?}; 12,000 of each: {eight:?}");
}

/// A rename that happened and said it had not, as over a network, and then a moment without answers.
#[test]
fn r11_after_a_rename_of_which_nothing_is_known_changes_are_taken_again() {
    let clock = Clock::manual();
    let disk = Hooked::new(World::new(3).disk(), false);
    let mut rig = hooked(&disk, &clock, Durability::Sync);
    assert!(rig.batch(&[create(ids()[0], 100_000)])[0].is_ok());
    *disk.rename_is_unsure.lock().unwrap() = 1;
    // Deterministic: the compaction by hand.
    let n = rig.writer.journal.good().n;
    rig.writer.start_compaction();
    rig.begin_upkeep();
    rig.writer.upkeep();
    assert!(n > 0 && rig.writer.compaction.is_none());
    let mut last = None;
    for _ in 0..5 {
        rig.writer.upkeep();
        last = Some(rig.batch(&[create(ids()[1], 100_000)]).remove(0));
    }
    assert!(last.as_ref().unwrap().is_ok(), "for ever: {}", last.unwrap().unwrap_err());
}
