//! What is asked of the file system: little enough that a test can stand in for it, and fail in every way a disk does.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind::NotFound},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::error::{Error, ErrorKind};

/// A folder with one file in it that matters, and room beside that for the next one.
pub(super) trait Disk: Send + Sync {
    /// Opens the file, if there is one.
    fn open(&self) -> io::Result<Option<Arc<dyn Handle>>>;
    /// Makes a new, empty file beside it.
    fn beside(&self) -> io::Result<Arc<dyn Handle>>;
    /// Removes the file beside it, if there is one.
    fn remove_beside(&self) -> io::Result<()>;
    /// Puts the file beside it in its place.
    fn rename(&self) -> io::Result<()>;
    /// What happened in the folder stays so, whatever happens to the machine.
    fn sync_folder(&self) -> io::Result<()>;
    /// Whether that file is the one in its place.
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
    /// Takes from others what a copy or an editor may have given them.
    fn keep_private(&self) -> io::Result<()>;
    /// What tells it from any other file.
    fn identity(&self) -> io::Result<Identity>;
    /// How many bytes are in it, whoever put them there.
    fn size(&self) -> io::Result<u64>;
}

/// Device and number, where there are such.
pub(super) type Identity = (u64, u64);

/// The real thing. Holding it is holding the lock.
pub(super) struct Folder {
    folder: PathBuf,
    file: PathBuf,
    beside: PathBuf,
    /// The lock goes when this is closed, be it by the end of the process. Its file stays: one that is removed while
    /// another process waits for it would lock nothing.
    _lock: File,
}

impl Folder {
    /// Takes the lock of a path.
    ///
    /// # Errors
    /// In words: no such folder, not writable, in use.
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
            Ok(()) => Ok(Self { beside: with(".compacting"), folder, file, _lock: lock }),
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
        lock_too(&file)?;
        Ok(Some(Arc::new(file)))
    }

    fn beside(&self) -> io::Result<Arc<dyn Handle>> {
        let file = options().create_new(true).open(&self.beside)?;
        lock_too(&file)?;
        Ok(Arc::new(file))
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

    /// There is no such call elsewhere: a rename is as durable as the system makes it.
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

impl Handle for File {
    #[cfg(unix)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, bytes, at)
    }

    #[cfg(windows)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, bytes, at)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, at)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(self, bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn keep_private(&self) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            if self.metadata()?.mode() & 0o077 != 0 {
                return self.set_permissions(fs::Permissions::from_mode(0o600));
            }
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.metadata()?))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Reads on from a place until it has all or the file ends.
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

/// An error of the file system, in words.
pub(super) fn failed(message: String, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidInput => {
            ErrorKind::Config
        }
        _ => ErrorKind::Unavailable,
    };
    Error::caused(kind, format!("{message}: {error}"), error)
}

/// To read and write, never through a symbolic link, and for nobody else if it is made anew.
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

/// In case that somebody removes the lock file: the file itself is held too, and so is the one that will replace it.
fn lock_too(file: &File) -> io::Result<()> {
    // Where a lock keeps others from reading, a copy could not be made.
    if cfg!(unix) {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "it is in use"),
            TryLockError::Error(error) => error,
        })?;
    }
    Ok(())
}

/// Says in words what the system says in a way that few understand.
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

/// Nothing to tell files by: that there is one has to do.
#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> Identity {
    (0, 0)
}
