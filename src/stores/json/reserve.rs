//! The reserve: disk space that is allocated ahead, so that sign-outs and one compaction fit on a full disk.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::disk::{Disk, Handle, is_full};
use crate::log;

/// Space after the end of the current file, and a file beside it for the next compaction.
#[derive(Default)]
pub(super) struct Reserve {
    /// How far the current file is allocated.
    tail: u64,
    /// The file that the next compaction is written to, and how much of it is allocated.
    next: Option<(Arc<dyn Handle>, u64)>,
    /// There is no reserve, because the file system cannot allocate space in advance.
    unsupported: bool,
    /// When the disk was found full, if that was within the last minute.
    full: Option<Instant>,
}

impl Reserve {
    /// Allocates space for `growth` bytes of changes after `end`, and in addition for sign-outs and for a compaction of `live`
    /// bytes (`None` while one is running, which already has its space).
    ///
    /// # Errors
    /// The disk is full.
    pub(super) fn ensure(
        &mut self,
        disk: &dyn Disk,
        file: &dyn Handle,
        end: u64,
        growth: u64,
        live: Option<u64>,
    ) -> io::Result<()> {
        let tail = self.ensure_tail(file, end, growth);
        let ensured = tail.and_then(|()| live.map_or(Ok(()), |live| self.ensure_next(disk, live)));
        self.say(disk, &ensured);
        ensured
    }

    /// Logs when the disk is full and when it has room again. While visitors' sessions are evicted, both alternate, so they are
    /// logged only once.
    fn say(&mut self, disk: &dyn Disk, ensured: &io::Result<()>) {
        let path = disk.path().display();
        match (ensured, self.full) {
            (Ok(()), None) => {}
            (Ok(()), Some(then)) if then.elapsed() < QUIET => {}
            (Ok(()), Some(_)) => {
                self.full = None;
                log::info!(%path, "the disk of the sessions file has room again");
            }
            (Err(error), before) => {
                self.full = Some(Instant::now());
                if before.is_none() {
                    log::warn!(%error, %path, "the disk of the sessions file is full");
                }
            }
        }
    }

    fn ensure_tail(&mut self, file: &dyn Handle, end: u64, growth: u64) -> io::Result<()> {
        let needed = end.saturating_add(growth).saturating_add(SIGN_OUTS);
        if self.unsupported || self.tail >= needed {
            return Ok(());
        }
        let from = self.tail.max(end);
        // Allocate more than needed, so that not every batch has to allocate.
        let wanted = needed.saturating_add((end / 8).clamp(AHEAD, MAX_AHEAD));
        let allocated = match file.allocate(from, wanted - from) {
            Err(error) if is_full(&error) => file.allocate(from, needed.saturating_sub(from)).map(|()| needed),
            result => result.map(|()| wanted),
        };
        if let Some(tail) = self.supported(allocated)? {
            self.tail = tail;
        }
        Ok(())
    }

    fn ensure_next(&mut self, disk: &dyn Disk, live: u64) -> io::Result<()> {
        let needed = live.saturating_add(HEAD).saturating_add(2 * SIGN_OUTS);
        let has = self.next.as_ref().map_or(0, |(_, has)| *has);
        if self.unsupported || has >= needed {
            return Ok(());
        }
        let file = match &self.next {
            Some((file, _)) => Arc::clone(file),
            None => {
                disk.remove_beside()?;
                disk.beside()?
            }
        };
        let wanted = needed.saturating_add(AHEAD.max(live / 8));
        let allocated = match file.allocate(has, wanted - has) {
            Err(error) if is_full(&error) => file.allocate(has, needed - has).map(|()| needed),
            result => result.map(|()| wanted),
        };
        match self.supported(allocated) {
            Ok(Some(allocated)) => self.next = Some((file, allocated)),
            Ok(None) => {
                self.next = None;
                disk.remove_beside()?;
            }
            Err(error) => {
                // Keep the previous allocation. A file without any allocated space is useless.
                if self.next.is_none() {
                    let _ = disk.remove_beside();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Treats any error other than a full disk as a file system that cannot allocate in advance.
    fn supported(&mut self, allocated: io::Result<u64>) -> io::Result<Option<u64>> {
        match allocated {
            Err(error) if is_full(&error) => Err(error),
            Err(_) => {
                self.unsupported = true;
                Ok(None)
            }
            Ok(allocated) => Ok(Some(allocated)),
        }
    }

    /// Returns how many bytes of records can certainly be compacted.
    pub(super) fn capacity(&self) -> Option<u64> {
        let (_, has) = self.next.as_ref()?;
        Some(has.saturating_sub(HEAD + 2 * SIGN_OUTS))
    }

    /// Returns whether that many bytes fit after the end of the current file.
    pub(super) fn holds(&self, end: u64, growth: u64) -> bool {
        self.unsupported || self.tail >= end.saturating_add(growth)
    }

    /// Takes the reserved file for a compaction. When it has replaced the current file, its remaining space is the space after
    /// the end.
    pub(super) fn take(&mut self) -> Option<(Arc<dyn Handle>, u64)> {
        self.next.take()
    }

    /// Records that another file is now the current one, with this much space allocated.
    pub(super) fn set_tail(&mut self, allocated: u64) {
        self.tail = allocated;
    }

    /// Forgets the reserved file, which is about to be removed.
    pub(super) fn forget_next(&mut self) {
        self.next = None;
    }
}

/// Enough for the lines of some hundred sign-outs. After that, a compaction makes room again.
const SIGN_OUTS: u64 = 64 << 10;
const AHEAD: u64 = 64 << 10;
const MAX_AHEAD: u64 = 1 << 20;
const HEAD: u64 = 1 << 10;
const QUIET: Duration = Duration::from_secs(60);
