//! `<state_dir>/pin/`: locked per token, and every change durable before it is relied on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, openat};
use rustix::io::Errno;

use super::LatchError;
use super::record::{Names, Record};

/// No record is longer, in bytes.
const MAX_RECORD: u64 = 4096;

/// The open directory of the records. Everything in it is reached through its descriptor, so that
/// what was checked is what is used.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: File,
    path: PathBuf,
}

/// An exclusive lock on one token's record, released when dropped or when the process ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Said aloud, because a process that a module forked may hold the same open file.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Directory {
    /// The directory, made with mode 0700 if need be.
    pub(super) fn open_or_create(state_dir: &Path) -> Result<Self, LatchError> {
        let parent = open_state_dir(state_dir)?;
        let path = state_dir.join("pin");
        let not_durable = |source| LatchError::NotDurable { path: path.clone(), source };
        match rustix::fs::mkdirat(&parent, "pin", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(errno) => return Err(not_durable(errno.into())),
        }
        parent.sync_all().map_err(not_durable)?;
        Self::open_in(&parent, &path)?.ok_or_else(|| not_durable(Errno::NOENT.into()))
    }

    /// The directory, if there is one.
    pub(super) fn open(state_dir: &Path) -> Result<Option<Self>, LatchError> {
        Self::open_in(&open_state_dir(state_dir)?, &state_dir.join("pin"))
    }

    fn open_in(parent: &File, path: &Path) -> Result<Option<Self>, LatchError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = match openat(parent, "pin", flags, Mode::empty()) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io_error(path, errno.into())),
        };
        let (owner, mode) = owner_and_mode(&descriptor, path)?;
        let own_uid = rustix::process::geteuid().as_raw();
        let refuse = |reason| Err(LatchError::StateDir { path: path.to_owned(), reason });
        if owner != own_uid {
            return refuse(format!(
                "is owned by uid {owner}, and this process runs as uid {own_uid}: run it as its owner, \
                 or chown the directory and what is in it to uid {own_uid}"
            ));
        }
        if mode & 0o077 != 0 {
            return refuse(format!(
                "has mode {:o}, which lets others in: chmod 700 it",
                mode & 0o777
            ));
        }
        Ok(Some(Self { descriptor, path: path.to_owned() }))
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Locks a token's record against every other process and thread.
    pub(super) fn lock(&self, names: &Names, patience: Duration) -> Result<Lock, LatchError> {
        let begun = Instant::now();
        let not_durable = |errno: Errno| LatchError::NotDurable {
            path: self.path(&names.lock()),
            source: errno.into(),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.descriptor, names.lock(), flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(not_durable)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(Errno::INTR) => (),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => {
                    let token = names.token.clone();
                    return Err(LatchError::Busy { token, waited: begun.elapsed() });
                }
                Err(errno) => return Err(not_durable(errno)),
            }
        }
    }

    /// The record in force, if there is one. Whatever cannot be read or is not ours alone refuses.
    pub(super) fn record(&self, names: &Names) -> Result<Option<Record>, LatchError> {
        let unreadable = |reason: String| LatchError::Unreadable {
            serial: names.serial.clone(),
            path: self.path(&names.record()),
            reason,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.descriptor, names.record(), flags, Mode::empty()) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(unreadable(io::Error::from(errno).to_string())),
        };
        let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_file() || !own || metadata.mode() & 0o077 != 0 {
            return Err(unreadable("it is not a file of ours with mode 600".to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_RECORD)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(error.to_string()))?;
        Record::from_bytes(&bytes, names).map(Some).map_err(unreadable)
    }

    /// Whether there is a record, whatever is in it.
    pub(super) fn has_record(&self, names: &Names) -> bool {
        rustix::fs::statat(&self.descriptor, names.record(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// All records.
    pub(super) fn records(&self) -> Result<Vec<Names>, LatchError> {
        let files = std::fs::read_dir(&self.path).map_err(|source| io_error(&self.path, source))?;
        files
            .map(|file| Ok(file.map_err(|source| io_error(&self.path, source))?.file_name()))
            .filter_map(|file| {
                file.map(|file| file.to_str().and_then(Names::of_record)).transpose()
            })
            .collect()
    }

    /// Writes a file of mode 0600 and syncs its content; the caller then syncs its name.
    pub(super) fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.descriptor, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(openat(&self.descriptor, file, flags, mode)?);
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Replaces the record by `bytes`; durable, or an error.
    pub(super) fn replace(&self, names: &Names, bytes: &[u8]) -> io::Result<()> {
        self.write(&names.unfinished(), bytes)?;
        self.rename(&names.unfinished(), &names.record())
    }

    /// Renames a file that was written; durable, or an error.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        rustix::fs::renameat(&self.descriptor, from, &self.descriptor, to)?;
        self.descriptor.sync_all()
    }

    /// Removes a file, durably; false if there is none.
    pub(super) fn remove(&self, file: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.descriptor, file, AtFlags::empty()) {
            Ok(()) => self.descriptor.sync_all()?,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        Ok(true)
    }
}

fn open_state_dir(path: &Path) -> Result<File, LatchError> {
    let own_uid = rustix::process::geteuid().as_raw();
    let refuse = |reason| LatchError::StateDir { path: path.to_owned(), reason };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor =
        rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(|errno| {
            let error = io::Error::from(errno);
            refuse(format!(
                "cannot be opened ({error}): make it a directory of mode 700 and uid {own_uid}"
            ))
        })?;
    let (owner, mode) = owner_and_mode(&descriptor, path)?;
    if owner != own_uid && owner != 0 {
        return Err(refuse(format!(
            "is owned by uid {owner}, and this process runs as uid {own_uid}: run it as the owner \
             (sudo -u '#{owner}'), or chown the directory to uid {own_uid}"
        )));
    }
    if mode & 0o022 != 0 {
        return Err(refuse(format!(
            "has mode {:o}, which lets others remove what is in it: chmod go-w it, \
             or use a directory of its own below it",
            mode & 0o777
        )));
    }
    Ok(descriptor)
}

fn owner_and_mode(descriptor: &File, path: &Path) -> Result<(u32, u32), LatchError> {
    let metadata = descriptor.metadata().map_err(|source| io_error(path, source))?;
    Ok((metadata.uid(), metadata.mode()))
}

fn io_error(path: &Path, source: io::Error) -> LatchError {
    LatchError::Io { path: path.to_owned(), source }
}
