//! A simulated disk that fails on demand, loses what was not synced, and forgets what it failed to write, as real ones do.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use super::disk::{Disk, FileIdentity, Handle};
use crate::random::{STEP, mix};

/// Pages are small here, so that small files have many.
pub(super) const PAGE: usize = 64;

/// The same numbers for the same seed.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0) % end
    }

    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// What the system shows and what is on the disk, which differ until a sync.
#[derive(Clone)]
pub(super) struct World {
    files: Vec<Inode>,
    shown: Directory,
    kept: Directory,
    folder_dirty: bool,
    /// Whether the files belong to another user.
    pub(super) is_foreign: bool,
    pub(super) calls: u64,
    /// The first call that fails, and how many do.
    pub(super) fault: Option<(u64, u64)>,
    /// The call at which the power fails, and what was on the disk then.
    pub(super) power: Option<u64>,
    /// The call before which another program cuts the file, and to what length.
    pub(super) cut: Option<(u64, usize)>,
    pub(super) image: Option<Box<World>>,
    pub(super) random: Random,
    /// How many bytes fit on the disk, which then allocates ahead if it is asked to. It has no bound otherwise.
    pub(super) capacity: Option<usize>,
}

#[derive(Clone, Copy, Default)]
struct Directory {
    file: Option<usize>,
    beside: Option<usize>,
}

#[derive(Clone, Default)]
struct Inode {
    shown: Vec<u8>,
    kept: Vec<u8>,
    dirty: BTreeSet<usize>,
    allocated: usize,
}

#[derive(Clone)]
pub(super) struct SimDisk(pub(super) Arc<Mutex<World>>);

struct SimFile(Arc<Mutex<World>>, usize);

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            files: Vec::new(),
            shown: Directory::default(),
            kept: Directory::default(),
            folder_dirty: false,
            is_foreign: false,
            calls: 0,
            fault: None,
            power: None,
            cut: None,
            image: None,
            random: Random(seed),
            capacity: None,
        }
    }

    /// A disk with that file on it.
    pub(super) fn with(bytes: &[u8]) -> Self {
        let mut world = Self::new(0);
        world.files.push(Inode { shown: bytes.to_vec(), kept: bytes.to_vec(), ..Inode::default() });
        world.shown.file = Some(0);
        world.kept.file = Some(0);
        world
    }

    pub(super) fn disk(self) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(self)))
    }

    /// Another program takes all space that is not allocated. Gives how much there was.
    pub(super) fn fill(&mut self) -> usize {
        let linked = [self.shown.file, self.shown.beside];
        let used = linked.into_iter().flatten().map(|file| self.files[file].allocated).sum();
        self.capacity.replace(used).unwrap_or_default()
    }

    /// The file as the system shows it.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.shown.file.map(|file| self.files[file].shown.as_slice())
    }

    pub(super) fn has_leftover(&self) -> bool {
        self.shown.beside.is_some()
    }

    /// Another program cuts the file in place, as a shell does that writes to it.
    pub(super) fn cut(&mut self, len: usize) {
        if let Some(file) = self.shown.file.map(|file| &mut self.files[file]) {
            file.set_len(len.min(file.shown.len()));
        }
    }

    /// Another program removes the file.
    pub(super) fn delete(&mut self) {
        self.shown.file = None;
        self.kept.file = None;
    }

    /// The disk as it is when the power comes back: any part of what was not synced may be there.
    pub(super) fn after_power_cut(&self) -> Self {
        let mut random = self.random.clone();
        let folder = if self.folder_dirty && random.chance(2) { self.shown } else { self.kept };
        let files = self.files.iter().map(|file| file.after_power_cut(&mut random)).collect();
        Self { files, shown: folder, kept: folder, capacity: self.capacity, ..Self::new(random.0) }
    }

    /// Allocates a file up to there, if that fits. What no name leads to any more takes no space.
    fn allocate(&mut self, file: usize, end: usize) -> io::Result<()> {
        let linked = [self.shown.file, self.shown.beside];
        let used: usize = linked.into_iter().flatten().map(|file| self.files[file].allocated).sum();
        let more = end.saturating_sub(self.files[file].allocated);
        if linked.contains(&Some(file)) && self.capacity.is_some_and(|capacity| used + more > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files[file].allocated += more;
        Ok(())
    }

    /// Counts a call, and says whether it is to fail.
    fn call(&mut self) -> io::Result<()> {
        let call = self.calls;
        self.calls += 1;
        if let Some((_, len)) = self.cut.filter(|(at, _)| *at == call) {
            self.cut(len);
        }
        if self.image.is_none() && self.power == Some(call) {
            self.image = Some(Box::new(self.after_power_cut()));
        }
        let fails = self.fault.is_some_and(|(from, count)| (from..from + count).contains(&call));
        if fails || self.image.is_some() { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

impl Inode {
    fn keep(&mut self, page: usize) {
        let (start, end) = (page * PAGE, ((page + 1) * PAGE).min(self.shown.len()));
        if start >= end {
            return;
        }
        if self.kept.len() < end {
            self.kept.resize(end, 0);
        }
        self.kept[start..end].copy_from_slice(&self.shown[start..end]);
    }

    fn mark(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / PAGE..to.div_ceil(PAGE));
    }

    fn set_len(&mut self, len: usize) {
        let before = self.shown.len();
        self.allocated = len;
        self.shown.resize(len, 0);
        self.mark(len.min(before), len.max(before));
        // The page that is cut through is written again.
        self.mark(len / PAGE * PAGE, len);
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            self.keep(page);
        }
        self.kept.resize(self.shown.len(), 0);
    }

    /// A sync that fails writes some pages and forgets the rest: the next one knows nothing of them.
    fn fail_to_sync(&mut self, random: &mut Random) {
        for page in std::mem::take(&mut self.dirty) {
            if random.chance(2) {
                self.keep(page);
            }
        }
    }

    fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut file = self.clone();
        for page in std::mem::take(&mut file.dirty) {
            if random.chance(2) {
                file.keep(page);
            }
        }
        let (short, long) = (self.kept.len().min(self.shown.len()), self.kept.len().max(self.shown.len()));
        match random.below(4) {
            0 => file.kept.resize(self.shown.len(), 0),
            1 => file.kept.resize(short + random.below((long - short) as u64 + 1) as usize, 0),
            _ => {}
        }
        file.shown = file.kept.clone();
        file
    }
}

impl SimDisk {
    pub(super) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// The disk after the power cut: after the planned one, or one now.
    pub(super) fn after_power_cut(&self) -> World {
        let mut world = self.world();
        let image = world.image.take();
        image.map_or_else(|| world.after_power_cut(), |image| *image)
    }

    fn handle(&self, file: usize) -> Arc<dyn Handle> {
        Arc::new(SimFile(Arc::clone(&self.0), file))
    }
}

impl Disk for SimDisk {
    fn open(&self) -> io::Result<Option<Arc<dyn Handle>>> {
        let mut world = self.world();
        world.call()?;
        Ok(world.shown.file.map(|file| self.handle(file)))
    }

    fn beside(&self) -> io::Result<Arc<dyn Handle>> {
        let mut world = self.world();
        world.call()?;
        if world.shown.beside.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.files.push(Inode::default());
        let file = world.files.len() - 1;
        world.shown.beside = Some(file);
        world.folder_dirty = true;
        Ok(self.handle(file))
    }

    fn remove_beside(&self) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.shown.beside = None;
        world.folder_dirty = true;
        Ok(())
    }

    fn rename(&self) -> io::Result<()> {
        let mut world = self.world();
        let called = world.call();
        // One that fails may have happened all the same; not after the power is gone, though.
        if called.is_ok() || (world.image.is_none() && world.random.chance(2)) {
            world.shown.file = world.shown.beside.take();
            world.folder_dirty = true;
        }
        called
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut world = self.world();
        let called = world.call();
        let dirty = std::mem::take(&mut world.folder_dirty);
        if dirty && (called.is_ok() || world.random.chance(2)) {
            world.kept = world.shown;
        }
        called
    }

    fn leads_to(&self, file: &dyn Handle) -> io::Result<bool> {
        let identity = file.identity()?;
        Ok(self.world().shown.file.is_some_and(|shown| (0, shown as u64) == identity))
    }

    fn path(&self) -> &Path {
        Path::new("sessions.json")
    }
}

impl Handle for SimFile {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.0.lock().unwrap();
        world.call()?;
        let from = world.files[self.1].shown.get(at as usize..).unwrap_or_default();
        let some = from.len().min(bytes.len());
        bytes[..some].copy_from_slice(&from[..some]);
        Ok(some)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut world = self.0.lock().unwrap();
        let called = world.call();
        // Without a fault it may be short, with one it may have happened in part.
        let some = match (&called, world.random.chance(8)) {
            (Ok(()), true) => 1 + world.random.below(bytes.len() as u64) as usize,
            (Ok(()), false) => bytes.len(),
            (Err(_), _) => world.random.below(bytes.len() as u64 + 1) as usize,
        };
        world.allocate(self.1, at as usize + some)?;
        let (at, file) = (at as usize, &mut world.files[self.1]);
        if file.shown.len() < at + some {
            file.shown.resize(at + some, 0);
        }
        file.shown[at..at + some].copy_from_slice(&bytes[..some]);
        file.mark(at, at + some);
        called.map(|()| some)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.call()?;
        world.files[self.1].set_len(len as usize);
        Ok(())
    }

    fn allocate(&self, from: u64, len: u64) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        if world.capacity.is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        world.call()?;
        world.allocate(self.1, (from + len) as usize)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.0.lock().unwrap();
        let called = world.call();
        let mut random = world.random.clone();
        match called {
            Ok(()) => world.files[self.1].sync(),
            Err(_) => world.files[self.1].fail_to_sync(&mut random),
        }
        world.random = random;
        called
    }

    fn keep_private(&self) -> io::Result<()> {
        match self.0.lock().unwrap().is_foreign {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        Ok((0, self.1 as u64))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().files[self.1].shown.len() as u64)
    }
}
