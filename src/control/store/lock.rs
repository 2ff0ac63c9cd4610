//! One process per state file: a lock that the system releases whatever happens, with the holder's id in it.

use super::StoreError;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// The lock; released when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock beside `state`, or says who has it.
pub(super) fn take(state: &Path) -> Result<Lock, StoreError> {
    let mut name = state.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let io = |error: std::io::Error| StoreError::Io {
        path: path.clone(),
        why: format!("{error}; the directory must exist and be writable"),
    };
    // Never truncated before the lock is held: the holder's id is in it.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Best effort: without the id the message is still clear.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            return Err(StoreError::Locked {
                path: state.to_owned(),
                holder: if holder.is_empty() { "(unknown)" } else { holder }.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    match write(&mut file) {
        Ok(()) => Ok(Lock { _file: file }),
        // A full disk: the lock holds all the same, only the id is missing.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::FileTooLarge | ErrorKind::QuotaExceeded
            ) =>
        {
            Ok(Lock { _file: file })
        }
        Err(error) => Err(io(error)),
    }
}
