//! The reserve: disk space that is allocated ahead, so that sign-outs and one compaction fit on a full disk.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::disk::{Disk, Handle, is_full};
use crate::log;

/// Space behind the end of the file in use, and a file beside it for the next compaction.
#[derive(Default)]
pub(super) struct Reserve {
    /// Up to where the file in use is allocated.
    tail: u64,
    /// The file that the next compaction is written to, and how much of it is allocated.
    next: Option<(Arc<dyn Handle>, u64)>,
    /// There is no reserve: the file system cannot allocate space in advance.
    unsupported: bool,
    /// When the disk was found full, if it was so in the last minute.
    full: Option<Instant>,
}

impl Reserve {
    /// Sees to it that `growth` bytes of changes fit behind `end`, and then still sign-outs, and a compaction of `live` bytes
    /// (`None` while one is under way, which has its space).
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

    /// Logs that the disk is full, and that it has room again. While visitors' sessions give way it is both in turns, which is
    /// said once.
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
        // More than is needed, so that not every batch asks for some.
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
                // What there was stays. A file of which nothing could be allocated is of no use.
                if self.next.is_none() {
                    let _ = disk.remove_beside();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes any error but a full disk for a file system that does not allocate ahead.
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

    /// How many bytes of records can be compacted for sure.
    pub(super) fn capacity(&self) -> Option<u64> {
        let (_, has) = self.next.as_ref()?;
        Some(has.saturating_sub(HEAD + 2 * SIGN_OUTS))
    }

    /// Whether that many bytes fit behind the end of the file in use.
    pub(super) fn holds(&self, end: u64, growth: u64) -> bool {
        self.unsupported || self.tail >= end.saturating_add(growth)
    }

    /// Gives the file for a compaction. With it in place of the file in use, the rest of it is the space behind the end.
    pub(super) fn take(&mut self) -> Option<(Arc<dyn Handle>, u64)> {
        self.next.take()
    }

    /// A file is in use of which so much is allocated.
    pub(super) fn set_tail(&mut self, allocated: u64) {
        self.tail = allocated;
    }

    /// Lets go of the file beside the one in use, which is about to be removed.
    pub(super) fn forget_next(&mut self) {
        self.next = None;
    }
}

/// Enough for the lines of some hundred sign-outs. Then a compaction makes room again.
const SIGN_OUTS: u64 = 64 << 10;
const AHEAD: u64 = 64 << 10;
const MAX_AHEAD: u64 = 1 << 20;
const HEAD: u64 = 1 << 10;
const QUIET: Duration = Duration::from_secs(60);
