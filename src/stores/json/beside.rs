//! A new file beside the current one, with all live records, which will replace it.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use super::{
    disk::{Disk, Handle, read_full, write_all},
    line::{Line, Moment},
    table::{Kept, Table, read},
};
use crate::record::id::RecordId;

/// A new file that has not replaced the current one yet. Everything in it was synced.
pub(super) struct Beside {
    pub(super) file: Arc<dyn Handle>,
    pub(super) len: u64,
    /// Records that had expired by this time are not in the file.
    pub(super) moment: Moment,
}

/// Writes all live records into a new file, as the state after change `n`.
///
/// A concurrent change may or may not be included, so every change after `n` has to be replayed on it.
pub(super) fn write_beside(disk: &dyn Disk, table: &RwLock<Table>, n: u64, stop: &AtomicBool) -> io::Result<Beside> {
    write_to(new_file(disk)?, table, n, stop, &HashSet::new())
}

pub(super) fn new_file(disk: &dyn Disk) -> io::Result<Arc<dyn Handle>> {
    disk.remove_beside()?;
    disk.beside()
}

/// Like [`write_beside`], but into a file that was already allocated, and without some of the records.
pub(super) fn write_to(
    file: Arc<dyn Handle>,
    table: &RwLock<Table>,
    n: u64,
    stop: &AtomicBool,
    without: &HashSet<RecordId>,
) -> io::Result<Beside> {
    // Read the time before the records. A record that expires in between is not in the file, although it had not ended by this
    // time.
    let moment = read(table).moment();
    let mut records = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        next = read(table).some(from, usize::MAX, &mut records);
    }
    // Replaying the records in this order restores the order of their last use.
    records.sort_unstable_by_key(|(_, kept)| kept.heard);
    if !without.is_empty() {
        records.retain(|(id, _)| !without.contains(id));
    }
    let mut len = 0;
    let mut bytes = Vec::with_capacity(CHUNK + CHUNK / 4);
    Line::Head { records: records.len() as u64, n, moment: Some(moment) }.write(None, &mut bytes);
    for (id, kept) in records {
        let Kept { version, time, payload, .. } = kept;
        Line::Put { id, version, time, payload, ends: Vec::new() }.write(None, &mut bytes);
        if bytes.len() >= CHUNK {
            if stop.load(SeqCst) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            write_all(&*file, &bytes, len)?;
            len += bytes.len() as u64;
            bytes.clear();
        }
    }
    write_all(&*file, &bytes, len)?;
    file.sync()?;
    Ok(Beside { file, len: len + bytes.len() as u64, moment })
}

impl Beside {
    /// Appends a part of the old file, byte for byte.
    pub(super) fn copy(&mut self, old: &dyn Handle, mut from: u64, until: u64) -> io::Result<()> {
        let mut bytes = vec![0; CHUNK];
        while from < until {
            let some = usize::try_from(until - from).unwrap_or(usize::MAX).min(bytes.len());
            let Some(bytes) = bytes.get_mut(..some) else { break };
            if read_full(old, bytes, from)? < some {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_all(&*self.file, bytes, self.len)?;
            self.len += some as u64;
            from += some as u64;
        }
        Ok(())
    }
}

/// How much is written at once.
pub(super) const CHUNK: usize = 1 << 18;
