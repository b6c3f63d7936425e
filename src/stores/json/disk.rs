//! The file system as the store uses it: a trait that is small enough for tests to simulate a disk that fails.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind::NotFound},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::error::{Error, ErrorKind};

/// A folder with the file, and a place beside it where the next one is written.
pub(super) trait Disk: Send + Sync {
    /// Opens the file, if there is one.
    fn open(&self) -> io::Result<Option<Arc<dyn Handle>>>;
    /// Creates a new, empty file beside it.
    fn beside(&self) -> io::Result<Arc<dyn Handle>>;
    /// Removes the file beside it, if there is one.
    fn remove_beside(&self) -> io::Result<()>;
    /// Renames the file beside it to its place.
    fn rename(&self) -> io::Result<()>;
    /// Syncs the folder, so that renames in it survive a power cut.
    fn sync_folder(&self) -> io::Result<()>;
    /// Whether that file is the one that the path leads to.
    fn leads_to(&self, file: &dyn Handle) -> io::Result<bool>;
    /// The path, for messages.
    fn path(&self) -> &Path;
}

/// An open file.
pub(super) trait Handle: Send + Sync {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    /// May write less than it was given.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Takes away access that a copy or an editor may have given to other users.
    fn keep_private(&self) -> io::Result<()>;
    /// What identifies the file.
    fn identity(&self) -> io::Result<Identity>;
    /// Its length, including bytes that other programs wrote.
    fn size(&self) -> io::Result<u64>;
}

/// Device and inode, where there are such.
pub(super) type Identity = (u64, u64);

/// A locked file. Dropping it unlocks it, which closing alone does not: a process that is being started at that moment has a
/// copy of every open file, and holds the lock until it executes its own program.
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // An error means that it was not locked.
        let _ = self.0.unlock();
    }
}

/// A folder of the file system. Holding it is holding the lock of the file.
pub(super) struct Folder {
    folder: PathBuf,
    file: PathBuf,
    beside: PathBuf,
    /// The lock is released when this is dropped, and when the process ends. The lock file stays: if it were removed while
    /// another process waits for it, that process would lock nothing.
    _lock: Held,
}

impl Folder {
    /// Takes the lock of a path.
    ///
    /// # Errors
    /// If the folder does not exist or is not writable, or if the file is in use.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Config, message));
        let Some(name) = path.file_name() else { return refuse(format!("{} names no file", path.display())) };
        // Absolute from here on: the process may go elsewhere.
        let file = std::path::absolute(path)
            .map_err(|error| failed(format!("the path {} cannot be resolved", path.display()), error))?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return refuse(format!("{} is not a folder", folder.display())),
            Err(error) if error.kind() == NotFound => {
                return refuse(format!("the folder {} does not exist", folder.display()));
            }
            Err(error) => return Err(failed(format!("the folder {} cannot be used", folder.display()), error)),
        }
        let with = |suffix: &str| {
            let mut name = OsString::from(name);
            name.push(suffix);
            folder.join(name)
        };
        let lock_path = with(".lock");
        let lock = options().create(true).truncate(false).open(&lock_path).map_err(|error| {
            failed(format!("the lock file {} cannot be opened for writing", lock_path.display()), refine(error))
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { beside: with(".compacting"), folder, file, _lock: Held(lock) }),
            Err(TryLockError::WouldBlock) => {
                let message =
                    format!("{} is in use, by another process or by other sessions of this one", file.display());
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            Err(TryLockError::Error(error)) => {
                Err(failed(format!("the lock file {} cannot be locked", lock_path.display()), error))
            }
        }
    }
}

impl Disk for Folder {
    fn open(&self) -> io::Result<Option<Arc<dyn Handle>>> {
        let file = match options().open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == NotFound => return Ok(None),
            Err(error) => return Err(refine(error)),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Some(Arc::new(lock_too(file)?)))
    }

    fn beside(&self) -> io::Result<Arc<dyn Handle>> {
        let file = options().create_new(true).open(&self.beside)?;
        Ok(Arc::new(lock_too(file)?))
    }

    fn remove_beside(&self) -> io::Result<()> {
        match fs::remove_file(&self.beside) {
            Err(error) if error.kind() != NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn rename(&self) -> io::Result<()> {
        fs::rename(&self.beside, &self.file)
    }

    #[cfg(unix)]
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Other systems have no such call: a rename is as durable as the system makes it.
    #[cfg(not(unix))]
    fn sync_folder(&self) -> io::Result<()> {
        fs::metadata(&self.folder).map(drop)
    }

    fn leads_to(&self, file: &dyn Handle) -> io::Result<bool> {
        match fs::symlink_metadata(&self.file) {
            Ok(metadata) => Ok(identity(&metadata) == file.identity()?),
            Err(error) if error.kind() == NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn path(&self) -> &Path {
        &self.file
    }
}

impl Handle for Held {
    #[cfg(unix)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, bytes, at)
    }

    #[cfg(windows)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.0, bytes, at)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, bytes, at)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.0, bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn keep_private(&self) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            if self.0.metadata()?.mode() & 0o077 != 0 {
                return self.0.set_permissions(fs::Permissions::from_mode(0o600));
            }
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.0.metadata()?))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &dyn Handle, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

pub(super) fn write_all(file: &dyn Handle, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An error of the file system, with an explanation.
pub(super) fn failed(message: String, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidInput => {
            ErrorKind::Config
        }
        _ => ErrorKind::Unavailable,
    };
    Error::caused(kind, format!("{message}: {error}"), error)
}

/// For reading and writing, never through a symbolic link. A new file is for its owner alone.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options
}

/// Locks the file itself too, and the one that will replace it, in case the lock file is removed.
fn lock_too(file: File) -> io::Result<Held> {
    // Elsewhere a lock keeps other programs from reading, and no copy could be made.
    if cfg!(unix) {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "it is in use"),
            TryLockError::Error(error) => error,
        })?;
    }
    Ok(Held(file))
}

/// Explains an error that the system describes in a way that few understand.
fn refine(error: io::Error) -> io::Error {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ELOOP) {
        return io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link, which is not followed");
    }
    error
}

#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Nothing identifies files here: it has to do that there is one.
#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> Identity {
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Here a copy of an open file stands for the process that has it.
    #[test]
    #[cfg(unix)]
    fn a_process_that_is_being_started_does_not_keep_the_lock() {
        let folder = std::env::temp_dir().join(format!("jam-session-lock-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("sessions.json");
        let first = Folder::lock(&path).unwrap();
        let file = options().create(true).truncate(false).open(&path).unwrap();
        let copies = [first._lock.0.try_clone().unwrap(), file.try_clone().unwrap()];
        let held = lock_too(file).unwrap();
        assert_eq!(Folder::lock(&path).err().unwrap().kind(), ErrorKind::Unavailable);
        assert!(first.open().is_err(), "the file itself is locked, too");

        drop((first, held));
        let second = Folder::lock(&path).unwrap();
        assert!(second.open().unwrap().is_some());
        drop((second, copies));
        fs::remove_dir_all(&folder).unwrap();
    }
}
