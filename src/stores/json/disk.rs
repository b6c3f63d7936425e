//! The file system as the store uses it: a trait that is small enough for tests to simulate a disk that fails.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

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
    /// Returns whether that file is the one that the path leads to.
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
    /// Allocates space for the file, even after its end, without changing its length.
    fn allocate(&self, from: u64, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Takes away access that a copy or an editor may have given to other users.
    fn keep_private(&self) -> io::Result<()>;
    /// The identity of the file.
    fn identity(&self) -> io::Result<FileIdentity>;
    /// Its length, including bytes that other programs wrote.
    fn size(&self) -> io::Result<u64>;
}

/// Device and inode, where there are such.
pub(super) type FileIdentity = (u64, u64);

/// A locked file. Dropping it unlocks it. Closing alone would not: a child process that is being started at that moment has a
/// copy of every open file, and holds the lock until it executes its own program.
pub(super) struct LockedFile(pub(super) File);

impl Drop for LockedFile {
    fn drop(&mut self) {
        // An error means that it was not locked.
        let _ = self.0.unlock();
    }
}

impl Handle for LockedFile {
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

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn allocate(&self, from: u64, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        Ok(fallocate(&self.0, FallocateFlags::KEEP_SIZE, from, len)?)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
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

    fn identity(&self) -> io::Result<FileIdentity> {
        Ok(identity(&self.0.metadata()?))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Whether an error says that the disk is full, or that the user may not have more of it.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
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

#[cfg(unix)]
pub(super) fn identity(metadata: &fs::Metadata) -> FileIdentity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// This system has no file identity, so any existing file counts as the same one.
#[cfg(not(unix))]
pub(super) fn identity(_: &fs::Metadata) -> FileIdentity {
    (0, 0)
}
