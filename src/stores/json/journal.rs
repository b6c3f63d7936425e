//! The end of the file, where changes are appended, and from where they are taken back.

use std::{io, sync::Arc};

use super::{
    Durability,
    disk::{Handle, write_all},
    line::{Line, Place},
};

/// A file with everything acknowledged in it.
pub(super) struct Journal {
    file: Arc<dyn Handle>,
    /// Where the next line goes.
    end: At,
    /// Where the file is cut when a write fails: the end of what was acknowledged.
    good: At,
    /// What a sync that succeeded has covered.
    synced: At,
    /// Up to which change some line says that it was synced.
    said: u64,
}

/// A place in the file: so many bytes, and the number of the change that ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) offset: u64,
    pub(super) n: u64,
}

/// What became of changes that could not be written.
#[derive(Debug)]
pub(super) enum Fault {
    /// They are not in the file, and never will be.
    NotApplied(io::Error),
    /// They may be. Nothing can be said of the file until it is written anew.
    Unknown(io::Error),
}

/// Lines on their way to the end of the file.
pub(super) struct Lines {
    bytes: Vec<u8>,
    n: u64,
    synced: u64,
}

impl Journal {
    /// A file that was synced up to its end.
    pub(super) fn new(file: Arc<dyn Handle>, end: At, said: u64) -> Self {
        Self { file, end, good: end, synced: end, said }
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

    /// Whether acknowledged changes wait for a sync.
    pub(super) fn is_ahead_of_disk(&self) -> bool {
        self.good.n > self.synced.n
    }

    pub(super) fn lines(&self) -> Lines {
        Lines { bytes: Vec::new(), n: self.end.n, synced: self.synced.n }
    }

    /// Appends lines, as durably as asked. On an error nothing of them is there, or nobody knows.
    pub(super) fn append(&mut self, lines: &Lines, durability: Durability) -> Result<(), Fault> {
        let end = At { offset: self.end.offset + lines.bytes.len() as u64, n: lines.n };
        let written = write_all(&*self.file, &lines.bytes, self.end.offset).and_then(|()| match durability {
            Durability::Sync => self.file.sync(),
            Durability::Flush => Ok(()),
        });
        match written {
            Ok(()) => {
                self.said = self.synced.n;
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

    /// Says in the file up to where it is synced, if no line says so yet. Nobody waits for it to be on the disk.
    pub(super) fn mark(&mut self) -> Result<(), Fault> {
        if self.said >= self.synced.n {
            return Ok(());
        }
        let mut lines = self.lines();
        lines.push(&Line::Synced);
        match write_all(&*self.file, &lines.bytes, self.end.offset) {
            Ok(()) => {
                self.said = self.synced.n;
                self.end = At { offset: self.end.offset + lines.bytes.len() as u64, n: lines.n };
                Ok(())
            }
            Err(error) => Err(self.cut_back(error)),
        }
    }

    /// Brings everything to the disk. After an error nothing is known of what was not there before: a later success
    /// would not mean that it is.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.end == self.synced {
            return Ok(());
        }
        self.file.sync()?;
        self.good = self.end;
        self.synced = self.end;
        Ok(())
    }

    /// Takes back what was not acknowledged.
    fn cut_back(&mut self, error: io::Error) -> Fault {
        match self.file.set_len(self.good.offset).and_then(|()| self.file.sync()) {
            Ok(()) => {
                self.end = self.good;
                self.synced = self.good;
                // What said so may just have been cut.
                self.said = self.said.min(self.good.n.saturating_sub(1));
                Fault::NotApplied(error)
            }
            Err(_) => Fault::Unknown(error),
        }
    }
}

impl Lines {
    pub(super) fn push(&mut self, line: &Line) {
        self.n += 1;
        line.write(Some(Place { n: self.n, synced: self.synced }), &mut self.bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
