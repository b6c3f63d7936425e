//! The journal: appends lines to the file, syncs it, and cuts off what could not be written.

use std::{io, sync::Arc};

use super::{
    beside::Beside,
    disk::{Disk, Handle, read_full, write_all},
    line::{Line, Moment, Place},
};

/// When a change is acknowledged. Default: [`Sync`](Self::Sync).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Once it has been synced to disk. It survives a power cut.
    #[default]
    Sync,
    /// Once it has been handed to the operating system. It survives the end of the process, and is synced within about a
    /// second.
    Flush,
}

/// The file in use, which has everything that was acknowledged.
pub(super) struct Journal {
    file: Arc<dyn Handle>,
    /// Where the next line goes.
    end: At,
    /// Where the last write began, or was cut back to.
    last_write: u64,
    /// The end of the acknowledged changes. The file is truncated to here when a write fails.
    good: At,
    /// The end of what the last successful sync covered.
    synced: At,
    /// The last change that some line says was synced.
    said: u64,
    /// The files that may be in place after a rename whose result is unknown.
    perhaps: Vec<Arc<dyn Handle>>,
}

/// A place in the file: its offset, and the number of the change that ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) offset: u64,
    pub(super) n: u64,
}

/// Why changes were not acknowledged.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The changes are not in the file.
    NotApplied(io::Error),
    /// The changes may be in the file, which cannot be trusted until it is rewritten.
    Unknown(io::Error),
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotApplied(error) | WriteError::Unknown(error) => error,
        }
    }
}

/// Encoded lines, to be appended.
pub(super) struct LineBuffer {
    bytes: Vec<u8>,
    n: u64,
    synced: u64,
}

impl Journal {
    /// A journal over a file that was synced up to its end.
    pub(super) fn new(file: Arc<dyn Handle>, end: At, said: u64) -> Self {
        Self { file, end, last_write: 0, good: end, synced: end, said, perhaps: Vec::new() }
    }

    pub(super) fn file(&self) -> &Arc<dyn Handle> {
        &self.file
    }

    pub(super) fn end(&self) -> At {
        self.end
    }

    pub(super) fn good(&self) -> At {
        self.good
    }

    /// Whether acknowledged changes were not synced yet.
    pub(super) fn is_ahead_of_disk(&self) -> bool {
        self.good.n > self.synced.n
    }

    /// Whether some line says how far the file was synced.
    pub(super) fn is_marked(&self) -> bool {
        self.said >= self.synced.n
    }

    pub(super) fn lines(&self) -> LineBuffer {
        LineBuffer { bytes: Vec::new(), n: self.end.n, synced: self.synced.n }
    }

    /// Appends lines, and syncs them if `durability` says so.
    pub(super) fn append(&mut self, lines: &LineBuffer, durability: Durability) -> Result<(), WriteError> {
        let end = At { offset: self.end.offset + lines.bytes.len() as u64, n: lines.n };
        let written = write_all(&*self.file, &lines.bytes, self.end.offset).and_then(|()| match durability {
            Durability::Sync => self.file.sync(),
            Durability::Flush => Ok(()),
        });
        match written {
            Ok(()) => {
                self.said = self.synced.n;
                self.last_write = self.end.offset;
                self.end = end;
                self.good = end;
                if durability == Durability::Sync {
                    self.synced = end;
                }
                Ok(())
            }
            Err(error) => Err(self.cut_back(error)),
        }
    }

    /// Appends a line that says how far the file was synced, unless some line says so. That line itself is not synced.
    pub(super) fn mark(&mut self, moment: Moment) -> Result<(), WriteError> {
        if self.is_marked() {
            return Ok(());
        }
        let mut lines = self.lines();
        lines.push(&Line::Synced { moment: Some(moment) });
        match write_all(&*self.file, &lines.bytes, self.end.offset) {
            Ok(()) => {
                self.said = self.synced.n;
                self.last_write = self.end.offset;
                self.end = At { offset: self.end.offset + lines.bytes.len() as u64, n: lines.n };
                Ok(())
            }
            Err(error) => Err(self.cut_back(error)),
        }
    }

    /// Truncates the file to its first line in place, for a disk that has no room for another file. If the machine stops while it
    /// does so, the contents are lost, so this is only for a file without live records.
    pub(super) fn start_over(&mut self, moment: Moment) -> io::Result<()> {
        let mut bytes = Vec::new();
        Line::Head { records: 0, n: self.end.n, moment: Some(moment) }.write(None, &mut bytes);
        self.file.set_len(0)?;
        self.file.sync()?;
        write_all(&*self.file, &bytes, 0)?;
        self.file.sync()?;
        let end = At { offset: bytes.len() as u64, n: self.end.n };
        *self = Self::new(Arc::clone(&self.file), end, end.n);
        Ok(())
    }

    /// Syncs the file. After an error, unsynced changes may be lost, even if a later sync succeeds.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.end == self.synced {
            return Ok(());
        }
        self.file.sync()?;
        self.good = self.end;
        self.synced = self.end;
        Ok(())
    }

    /// Replaces the current file with a new one, which contains everything up to change `n`. Some line in it says that `said` was
    /// synced.
    pub(super) fn replace(&mut self, disk: &dyn Disk, beside: Beside, n: u64, said: u64) -> Result<(), WriteError> {
        let old = self.in_place(disk).map_err(WriteError::NotApplied)?;
        let renamed = disk.rename();
        if let Err(error) = &renamed {
            // If files cannot be told apart, both seem to be there. On such systems a failed rename has not happened.
            let is_new = match disk.leads_to(&*old) {
                Ok(true) => Ok(false),
                Ok(false) => disk.leads_to(&*beside.file),
                Err(unknown) => Err(unknown),
            };
            let error = io::Error::new(error.kind(), error.to_string());
            match is_new {
                Ok(true) => {}
                Ok(false) => return Err(WriteError::NotApplied(error)),
                Err(_) => {
                    // Either of the two may be in place later, and may then be replaced by a third file.
                    self.perhaps = vec![old, beside.file];
                    return Err(WriteError::Unknown(error));
                }
            }
        }
        *self = Self::new(beside.file, At { offset: beside.len, n }, said);
        // Without this sync, either of the two may be in place after a power cut. So a third file will replace it.
        renamed.and_then(|()| disk.sync_folder()).map_err(WriteError::Unknown)
    }

    /// Returns the file that the path leads to, if it is one of ours. No other file is ever replaced.
    pub(super) fn in_place(&self, disk: &dyn Disk) -> io::Result<Arc<dyn Handle>> {
        for file in std::iter::once(&self.file).chain(&self.perhaps) {
            if disk.leads_to(&**file)? {
                return Ok(Arc::clone(file));
            }
        }
        Err(io::Error::other("the file was deleted or replaced while it was in use"))
    }

    /// Returns what another program did to the file, if it wrote to it in place. This detects any truncation, at any time.
    pub(super) fn damage(&self) -> io::Result<Option<String>> {
        let (end, size) = (self.end.offset, self.file.size()?);
        if size != end {
            return Ok(Some(format!("it had {end} bytes, and now {size}")));
        }
        // If the file was truncated just before the last write, it has the right length again, but zeros before that write
        // instead of the end of a line.
        let Some(before) = self.last_write.checked_sub(1) else { return Ok(None) };
        let mut byte = [0];
        read_full(&*self.file, &mut byte, before)?;
        Ok((byte != *b"\n").then(|| format!("there is a hole before byte {}", self.last_write)))
    }

    /// Truncates the file to the acknowledged changes.
    fn cut_back(&mut self, error: io::Error) -> WriteError {
        match self.file.set_len(self.good.offset).and_then(|()| self.file.sync()) {
            Ok(()) => {
                self.end = self.good;
                self.last_write = self.good.offset;
                self.synced = self.good;
                // The line that said so may just have been removed.
                self.said = self.said.min(self.good.n.saturating_sub(1));
                WriteError::NotApplied(error)
            }
            Err(_) => WriteError::Unknown(error),
        }
    }
}

impl LineBuffer {
    pub(super) fn push(&mut self, line: &Line) {
        self.n += 1;
        line.write(Some(Place { n: self.n, synced: self.synced }), &mut self.bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
