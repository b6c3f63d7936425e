//! Recovery: opens the file, replays it into the table, and tells a torn write from damage.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{Arc, RwLock, atomic::AtomicBool},
};

use super::{
    beside::{Beside, write_beside},
    disk::{Disk, Handle, is_full, read_full, write_all},
    folder::failed,
    journal::{At, Durability, Journal, WriteError},
    line::{Line, LineError, Moment, is_ours, says_synced},
    table::{Table, read, write},
};
use crate::error::{Error, ErrorKind};

/// The journal of a file that was opened, and what was cut off its end.
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) cut: Option<Cut>,
}

/// A torn write at the end of the file: it was being written when the machine or the process stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) line: u64,
    pub(super) bytes: u64,
}

/// Fills the table from the file, which is created if it does not exist.
///
/// # Errors
/// The file is left unchanged, unless only cutting off its torn end failed.
pub(super) fn open(disk: &dyn Disk, table: &RwLock<Table>) -> Result<Recovered, Error> {
    let path = disk.path().display();
    let file = disk.open().map_err(|error| failed(format!("{path} could not be opened"), error))?;
    let found = match &file {
        Some(file) => replay(&**file, disk.path(), &mut write(table))?,
        None => None,
    };
    let (Some(file), Some(found)) = (file, found) else {
        let journal = create(disk, table).map_err(|error| failed(format!("{path} could not be created"), error))?;
        return Ok(Recovered { journal, cut: None });
    };
    // Only now: the file beside it is ours only if the file itself is, and no other process may be writing it.
    disk.remove_beside()
        .map_err(|error| failed(format!("what a crash left beside {path} could not be removed"), error))?;
    // The process that renamed the file may have been killed before it synced the folder. A power cut would then bring back
    // the old file, and lose whatever is appended to this one.
    disk.sync_folder()
        .map_err(|error| failed(format!("the folder of {path} could not be brought to the disk"), error))?;
    // This fails if the file belongs to another user, who could read and write all sessions from now on.
    file.keep_private().map_err(|error| failed(format!("{path} cannot be kept from others"), error))?;
    let cut = found.cut;
    let is_news = write(table).begin(found.moment);
    let settled = found.settle(file).and_then(|mut journal| {
        tidy(disk, table, &mut journal, is_news)?;
        Ok(journal)
    });
    let journal =
        settled.map_err(|error| failed(format!("the end of {path} could not be brought to the disk"), error))?;
    Ok(Recovered { journal, cut })
}

/// Starts the file over if it has no live records, or else records what has expired. On a full disk neither may be possible, and
/// then the file is left unchanged.
fn tidy(disk: &dyn Disk, table: &RwLock<Table>, journal: &mut Journal, is_news: bool) -> io::Result<()> {
    let (moment, is_empty) = {
        let table = read(table);
        (table.moment(), table.usage().records() == 0)
    };
    let n = journal.end().n;
    if is_empty && journal.end().offset > START_OVER {
        let written = write_beside(disk, table, n, &AtomicBool::new(false)).map_err(WriteError::NotApplied);
        return match written.and_then(|beside| journal.replace(disk, beside, n, n)) {
            Err(WriteError::NotApplied(error)) if is_full(&error) => {
                let _ = disk.remove_beside();
                journal.start_over(moment)
            }
            Err(WriteError::NotApplied(_)) | Ok(()) => Ok(()),
            Err(WriteError::Unknown(error)) => Err(error),
        };
    }
    if is_news {
        let mut lines = journal.lines();
        lines.push(&Line::Synced { moment: Some(moment) });
        if let Err(WriteError::Unknown(error)) = journal.append(&lines, Durability::Sync) {
            return Err(error);
        }
    }
    Ok(())
}

fn create(disk: &dyn Disk, table: &RwLock<Table>) -> io::Result<Journal> {
    let Beside { file, len, .. } = write_beside(disk, table, 0, &AtomicBool::new(false))?;
    disk.rename()?;
    disk.sync_folder()?;
    Ok(Journal::new(file, At { offset: len, n: 0 }, 0))
}

/// The result of replaying a file.
struct Replayed {
    /// The end of the last whole line.
    end: At,
    /// The end of the part that was synced, according to the lines.
    vouched: At,
    /// The last change that is more than a line about syncing.
    changed: u64,
    cut: Option<Cut>,
    /// The latest times of both clocks in any line.
    moment: Option<Moment>,
}

impl Replayed {
    /// Cuts off the torn end, and writes the lines again that are not known to be on the disk.
    fn settle(self, file: Arc<dyn Handle>) -> io::Result<Journal> {
        let Self { end, vouched, changed, cut, .. } = self;
        if cut.is_some() {
            file.set_len(end.offset)?;
        }
        // They are written again, and not only synced. After a failed sync, the system may show pages that the disk does not
        // have, and consider them clean.
        let mut at = vouched.offset;
        let mut bytes = vec![0; 1 << 16];
        while at < end.offset {
            let some = usize::try_from(end.offset - at).unwrap_or(usize::MAX).min(bytes.len());
            let Some(bytes) = bytes.get_mut(..some) else { break };
            if read_full(&*file, bytes, at)? < some {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_all(&*file, bytes, at)?;
            at += some as u64;
        }
        if cut.is_some() || vouched.offset < end.offset {
            file.sync()?;
        }
        // Opening and closing repeatedly must not make the file longer.
        let said = if changed > vouched.n { vouched.n } else { end.n };
        Ok(Journal::new(file, end, said))
    }
}

/// Replays a file into the table. Returns `None` if it is empty.
fn replay(file: &dyn Handle, path: &Path, table: &mut Table) -> Result<Option<Replayed>, Error> {
    let mut lines = LineReader::new(file, path);
    // Check this before looking for a line, because another program's file may be one endless line.
    let mut start = [0; 256];
    let read = read_full(file, &mut start, 0);
    let read = read.map_err(|error| failed(format!("{} could not be read", path.display()), error))?;
    let start = start.get(..read).unwrap_or_default();
    if start.is_empty() {
        return Ok(None);
    }
    if !is_ours(start) {
        return Err(lines.unrelated(start));
    }
    lines.next()?;
    let (records, n, first) = match Line::read(lines.line()) {
        Ok((None, Line::Head { records, n, moment })) if lines.whole => (records, n, moment),
        Err(LineError::Unknown) => return Err(lines.later()),
        _ => return Err(lines.broken()),
    };
    for _ in 0..records {
        lines.next()?;
        match Line::read(lines.line()) {
            Ok((None, line @ Line::Put { .. })) if lines.whole => table.replay(line),
            Err(LineError::Unknown) => return Err(lines.later()),
            _ => return Err(lines.broken()),
        }
    }
    let start = At { offset: lines.end, n };
    let mut found = Replayed { end: start, vouched: start, changed: n, cut: None, moment: first };
    let mut ends = VecDeque::new();
    while lines.next()? {
        let (place, line) = match Line::read(lines.line()) {
            Ok((Some(place), line)) if lines.whole && place.n == found.end.n + 1 => (place, line),
            Err(LineError::Unknown) => return Err(lines.later()),
            _ => {
                let (offset, number) = (found.end.offset, lines.number);
                let error = lines.broken();
                // A later line may say that this one was on the disk.
                loop {
                    if says_synced(lines.line(), lines.whole, found.end.n + 1) {
                        return Err(error);
                    }
                    if !lines.next()? {
                        break;
                    }
                }
                found.cut = Some(Cut { line: number, bytes: lines.end - offset });
                break;
            }
        };
        found.end = At { offset: lines.end, n: place.n };
        ends.push_back(found.end);
        while let Some(end) = ends.front().copied().filter(|end: &At| end.n <= place.synced) {
            found.vouched = end;
            ends.pop_front();
        }
        match line {
            Line::Synced { moment: Some(moment) } => found.moment = Some(moment.later(found.moment)),
            Line::Synced { moment: None } => {}
            _ => found.changed = place.n,
        }
        table.replay(line);
    }
    Ok(Some(found))
}

/// Reads the file line by line.
struct LineReader<'a> {
    reader: BufReader<From<'a>>,
    path: &'a Path,
    bytes: Vec<u8>,
    number: u64,
    /// Where the line ends, and whether it ends with a newline.
    end: u64,
    whole: bool,
}

impl<'a> LineReader<'a> {
    fn new(file: &'a dyn Handle, path: &'a Path) -> Self {
        let reader = BufReader::with_capacity(1 << 18, From { file, at: 0 });
        Self { reader, path, bytes: Vec::new(), number: 0, end: 0, whole: true }
    }

    /// Advances to the next line, if there is one.
    fn next(&mut self) -> Result<bool, Error> {
        self.bytes.clear();
        self.number += 1;
        let read = self.reader.read_until(b'\n', &mut self.bytes);
        self.end += read.map_err(|error| failed(format!("{} could not be read", self.path.display()), error))? as u64;
        self.whole = self.bytes.last() == Some(&b'\n');
        Ok(!self.bytes.is_empty())
    }

    /// Returns the line without its newline.
    fn line(&self) -> &[u8] {
        self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes)
    }

    fn broken(&self) -> Error {
        let what = if self.bytes.is_empty() { "is missing" } else { "is not what was written" };
        let (path, number) = (self.path.display(), self.number);
        Error::new(
            ErrorKind::Unreadable,
            format!(
                "line {number} of {path} {what}, although it had been synced; the file was left as it is: restore a backup, or \
                 move it away to start without sessions"
            ),
        )
    }

    fn later(&self) -> Error {
        let (path, number) = (self.path.display(), self.number);
        Error::new(
            ErrorKind::Unreadable,
            format!(
                "line {number} of {path} was written by a later version of this crate: use that version; the file was left as it is"
            ),
        )
    }

    fn unrelated(&self, start: &[u8]) -> Error {
        let path = self.path.display();
        let hint = match start.first() {
            Some(b'{') => " (it may be a TinyDB file of Jam, whose sessions cannot be taken over)",
            _ => "",
        };
        Error::new(
            ErrorKind::Config,
            format!("{path} was not written by this crate{hint}; it was left as it is: choose another path"),
        )
    }
}

struct From<'a> {
    file: &'a dyn Handle,
    at: u64,
}

impl Read for From<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// A file of this size is not worth compacting.
const START_OVER: u64 = 4096;
