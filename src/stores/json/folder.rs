//! The folder of the file: takes its lock, opens the file, and explains why it cannot.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind::NotFound},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::disk::{Disk, Handle, LockedFile, identity};
use crate::{
    error::{Error, ErrorKind},
    log,
};

/// A folder of the file system. Holding it is holding the lock of the file.
pub(super) struct Folder {
    /// The folder that the path led to when it was opened, without symbolic links.
    folder: PathBuf,
    file: PathBuf,
    /// The places for the file beside it. The first one that is not taken by something that cannot be removed is used.
    places: Vec<PathBuf>,
    beside: Mutex<Option<PathBuf>>,
    /// The lock is released when this is dropped, and when the process ends. The lock file stays: if it were removed while
    /// another process waits for it, that process would lock nothing.
    _lock: LockedFile,
    switched: Mutex<Switched>,
}

/// Notices that a symbolic link in the path was switched to another folder.
struct Switched {
    /// The folder as it was given.
    folder: PathBuf,
    look_again: Instant,
    said: bool,
}

impl Folder {
    /// Takes the lock of a path.
    ///
    /// # Errors
    /// `Config` if the folder does not exist or is not writable, or if no file of ours can be there; `Unavailable` if the file
    /// is in use.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Config, message));
        let Some(name) = path.file_name() else {
            return refuse(format!("the path {} has no file name", path.display()));
        };
        // Absolute from here on, because the process may change its folder.
        let given = std::path::absolute(path)
            .map_err(|error| failed(format!("the path {} cannot be resolved", path.display()), error))?;
        let given = given.parent().unwrap_or(Path::new("/"));
        match fs::metadata(given) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return refuse(format!("{} is not a folder", given.display())),
            Err(error) if error.kind() == NotFound => {
                return refuse(format!("the folder {} does not exist: create it first", given.display()));
            }
            Err(error) if is_loop(&error) => {
                return refuse(format!("the symbolic links in {} form a loop", given.display()));
            }
            Err(error) => return Err(failed(format!("the folder {} cannot be used", given.display()), error)),
        }
        // Without symbolic links, so that a link that is switched does not take the file away from under the process.
        let folder = fs::canonicalize(given)
            .map_err(|error| failed(format!("the folder {} cannot be used", given.display()), error))?;
        let with = |suffix: String| {
            let mut name = OsString::from(name);
            name.push(suffix);
            folder.join(name)
        };
        let file = folder.join(name);
        let places: Vec<PathBuf> = std::iter::once(with(".compacting".to_owned()))
            .chain((1..PLACES).map(|place| with(format!(".compacting.{place}"))))
            .collect();
        // Check before anything is created: the name of the file, and the longest name that is needed beside it.
        check_place(&file)?;
        if let Some(longest) = places.last()
            && let Err(error) = fs::symlink_metadata(longest)
            && error.kind() == io::ErrorKind::InvalidFilename
        {
            let message = format!("the name of {} is too long for the files beside it", file.display());
            return Err(failed(message, error));
        }
        let lock_path = with(".lock".to_owned());
        let lock = options().create(true).truncate(false).open(&lock_path).map_err(|error| {
            failed(format!("the lock file {} cannot be opened for writing", lock_path.display()), refine(error))
        })?;
        let switched = Switched { folder: given.to_owned(), look_again: Instant::now() + LOOK, said: false };
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                folder,
                file,
                places,
                beside: Mutex::default(),
                _lock: LockedFile(lock),
                switched: Mutex::new(switched),
            }),
            Err(TryLockError::WouldBlock) => {
                let message =
                    format!("{} is in use by another process, or was opened twice in this one", file.display());
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                let message = format!(
                    "the file system of {} has no locks, so another process could use it too: use another one",
                    file.display()
                );
                Err(Error::caused(ErrorKind::Config, message, error))
            }
            Err(TryLockError::Error(error)) => {
                Err(failed(format!("the lock file {} cannot be locked", lock_path.display()), error))
            }
        }
    }

    /// Warns once if the given path now leads to another folder, because the next process will look there.
    fn check_switched(&self) {
        let mut switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
        if switched.said || Instant::now() < switched.look_again {
            return;
        }
        switched.look_again = Instant::now() + LOOK;
        let now = fs::canonicalize(&switched.folder);
        if now.is_ok_and(|now| now != self.folder) {
            switched.said = true;
            let (path, given) = (self.file.display(), switched.folder.display());
            log::warn!(
                %path, %given,
                "the folder of the sessions file is a symbolic link that now points elsewhere: this process keeps the old file, and the next one will not find its sessions"
            );
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
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        check_owner(&metadata)?;
        if is_mounted(&file) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, MOUNTED));
        }
        Ok(Some(Arc::new(lock_too(file)?)))
    }

    fn beside(&self) -> io::Result<Arc<dyn Handle>> {
        let mut first_error = None;
        for place in &self.places {
            // If something cannot be removed, the other places are left.
            match remove(place).and_then(|()| options().create_new(true).open(place)) {
                Ok(file) => {
                    let file = lock_too(file)?;
                    if let Err(error) = check_new(&file) {
                        let _ = remove(place);
                        return Err(error);
                    }
                    *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = Some(place.clone());
                    return Ok(Arc::new(file));
                }
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or_else(|| NotFound.into()))
    }

    fn remove_beside(&self) -> io::Result<()> {
        *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let removed: Vec<io::Result<()>> = self.places.iter().map(|place| remove(place)).collect();
        // A folder, a mount or another user's file cannot be removed. It does no harm as long as one place is left.
        if removed.iter().any(Result::is_ok) { Ok(()) } else { removed.into_iter().collect() }
    }

    fn rename(&self) -> io::Result<()> {
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        let place = beside.as_ref().ok_or(NotFound)?;
        fs::rename(place, &self.file).map_err(refine)?;
        *beside = None;
        Ok(())
    }

    #[cfg(unix)]
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Other systems have no such call, so a rename is only as durable as the system makes it.
    #[cfg(not(unix))]
    fn sync_folder(&self) -> io::Result<()> {
        fs::metadata(&self.folder).map(drop)
    }

    fn leads_to(&self, file: &dyn Handle) -> io::Result<bool> {
        self.check_switched();
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

/// An error of the file system, with an explanation.
pub(super) fn failed(message: String, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::Unsupported => ErrorKind::Config,
        _ => ErrorKind::Unavailable,
    };
    Error::caused(kind, format!("{message}: {error}"), error)
}

/// Refuses a path at which no file of ours can be, before anything is created beside it.
fn check_place(file: &Path) -> Result<(), Error> {
    let what = match fs::symlink_metadata(file) {
        Ok(metadata) if metadata.is_file() => {
            // Check this before creating a lock file. The lock file would belong to us, and lock out the owner of the file.
            return check_owner(&metadata)
                .map_err(|error| failed(format!("{} could not be opened", file.display()), error));
        }
        // On other systems links are followed.
        Ok(metadata) if metadata.is_symlink() && !cfg!(unix) => return Ok(()),
        Ok(metadata) if metadata.is_symlink() => LINK,
        Ok(metadata) if metadata.is_dir() => "it is a folder",
        Ok(_) => "it is a device, a pipe or a socket",
        Err(error) if error.kind() == NotFound => return Ok(()),
        Err(error) => return Err(failed(format!("{} could not be opened", file.display()), error)),
    };
    let error = io::Error::new(io::ErrorKind::InvalidInput, what);
    Err(failed(format!("{} could not be opened", file.display()), error))
}

/// Removes a file of ours, if it exists. Also removes an empty folder.
fn remove(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() == NotFound => Ok(()),
        // Some systems say that removing a folder is not permitted.
        Err(_) if fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_dir()) => {
            fs::remove_dir(place).map_err(|_| io::ErrorKind::IsADirectory.into())
        }
        result => result,
    }
}

/// Opens for reading and writing, but never through a symbolic link. A new file is accessible only to its owner.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::OFlags;
        options.mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    }
    options
}

/// Locks the file itself too, and the one that will replace it, in case the lock file is removed.
fn lock_too(file: File) -> io::Result<LockedFile> {
    // On other systems a lock keeps other programs from reading, so no copy could be made.
    if cfg!(unix) {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "it is in use"),
            TryLockError::Error(error) => error,
        })?;
    }
    Ok(LockedFile(file))
}

/// Refuses a file of another user, which root could open: that user would read and write all sessions, and find a file that
/// was replaced by one of root's.
#[cfg(unix)]
fn check_owner(metadata: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == us {
        return Ok(());
    }
    let message = format!("it belongs to user {}, and this process runs as user {}", named(owner), named(us));
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(not(unix))]
fn check_owner(_: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Refuses a file system that gives a new file to another user, or to more than one: the file would be refused when it is
/// opened again.
fn check_new(file: &LockedFile) -> io::Result<()> {
    let explain = |error: io::Error| {
        let message = format!("the file system does not keep a new file for this user alone: {error}");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    check_owner(&file.0.metadata()?).and_then(|()| file.keep_private()).map_err(explain)
}

/// The number of a user, and the name if it is a local one.
#[cfg(unix)]
fn named(user: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    });
    name.map_or_else(|| user.to_string(), |name| format!("{user} ({name})"))
}

/// Whether the file itself is mounted, as `docker run -v file:file` does. Such a file cannot be replaced.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_mounted(file: &File) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    // Kernels before 5.8 do not tell. There the first rename does.
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn is_mounted(_: &File) -> bool {
    false
}

/// Returns whether a path has too many symbolic links to follow.
fn is_loop(error: &io::Error) -> bool {
    #[cfg(unix)]
    return rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP);
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

/// Explains an error whose description by the system is hard to understand.
fn refine(error: io::Error) -> io::Error {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let explained = match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => Some(LINK),
            Some(Errno::BUSY) => Some(MOUNTED),
            // A socket, or a device without a driver.
            Some(Errno::NXIO | Errno::NODEV) => Some("it is not a file"),
            _ => None,
        };
        if let Some(explained) = explained {
            return io::Error::new(io::ErrorKind::InvalidInput, explained);
        }
    }
    error
}

const LINK: &str = "it is a symbolic link, which is not followed";
const MOUNTED: &str =
    "it is mounted as a single file, so it can never be replaced by a compacted one: mount its folder";
/// The number of places for the file beside it.
const PLACES: usize = 4;
/// How often to check whether the folder was switched.
const LOOK: Duration = Duration::from_secs(1);
