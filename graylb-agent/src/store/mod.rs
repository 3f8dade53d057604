//! The state file: what was switched at run time, kept over restarts of agent and host.
//!
//! One header line (`graylb-state VERSION CRC32 LENGTH`) and JSON. It is written whole or not at all, and
//! a file that is damaged in any way is set aside under another name, never used and never deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{changes::Changes, health::HealthState, rollout::Record, spec::Name},
    trust,
};

/// Version of the file's contents.
const VERSION: u32 = 2;
const MAGIC: &str = "graylb-state";
/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 64 << 20;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// What was changed at run time, by service.
    pub changes: BTreeMap<Name, Changes>,
    /// The latest rollout of each service that had one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rollouts: BTreeMap<Name, Record>,
    /// Backends that are drained: pool → backends.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drained: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// Last known health: pool → backend → state. Good only within the same boot.
    pub health: BTreeMap<String, BTreeMap<SocketAddr, HealthState>>,
    /// The boot that `health` is from.
    pub boot_id: String,
}

/// Why the state file cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel refused.
    #[error("state file {path}: cannot {tried}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Somebody else could change what the agent believes.
    #[error("state file {path}: {why}; use a directory that only the agent's user can write to")]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
}

/// An open state file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    written: Vec<u8>,
}

impl Store {
    /// Reads the file. A missing one is an empty state; a damaged one too, with a note that says where it
    /// was put.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, belongs to or can be written by others, or the path is no plain file.
    pub fn open(path: &Path) -> Result<(Self, Stored, Vec<String>), StoreError> {
        let mut store = Self { path: path.to_owned(), written: Vec::new() };
        store.check_directory()?;
        // Left by an agent that was killed while it wrote.
        match fs::remove_file(store.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(store.io("remove its temporary file", error));
            }
            Ok(()) | Err(_) => {}
        }
        let Some(bytes) = store.read()? else { return Ok((store, Stored::default(), Vec::new())) };
        match decode(&bytes) {
            Ok(stored) => {
                store.written = bytes;
                Ok((store, stored, Vec::new()))
            }
            Err(why) => {
                let aside = store.set_aside()?;
                let note = format!(
                    "state file {} is damaged ({why}): set aside as {}, going on with nothing switched",
                    path.display(),
                    aside.display()
                );
                Ok((store, Stored::default(), vec![note]))
            }
        }
    }

    /// Writes the file: a temporary one beside it, flushed to disk, renamed over it, and the directory
    /// flushed. What is there already is not written again.
    ///
    /// # Errors
    ///
    /// The kernel refused; the file is as it was.
    pub fn save(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let bytes = encode(stored).map_err(|error| self.io("encode", error.into()))?;
        if bytes == self.written {
            return Ok(());
        }
        let temporary = self.temporary();
        let result = self.write_over(&temporary, &bytes);
        if result.is_err() {
            // The next open removes it, should this fail too.
            let _left_behind = fs::remove_file(&temporary);
        } else {
            self.written = bytes;
        }
        result
    }

    fn write_over(&self, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.io("remove its temporary file", error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)
            .map_err(|error| self.io("make its temporary file", error))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| self.io("write its temporary file", error))?;
        fs::rename(temporary, &self.path).map_err(|error| self.io("put in place", error))?;
        File::open(self.directory())
            .and_then(|directory| directory.sync_all())
            .map_err(|error| self.io("flush its directory", error))
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".tmp");
        name.into()
    }

    fn check_directory(&self) -> Result<(), StoreError> {
        let directory = self.directory();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| self.io("make its directory", error))?;
        trust::check(directory).map_err(|error| self.unsafe_because(error.to_string()))?;
        let metadata =
            fs::metadata(directory).map_err(|error| self.io("look at its directory", error))?;
        let me = rustix::process::geteuid().as_raw();
        if metadata.uid() != me {
            return Err(self.unsafe_because(format!(
                "its directory belongs to user {}, not to {me}",
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(self.unsafe_because(format!(
                "its directory can be written by others (mode {:o})",
                metadata.mode() & 0o7777
            )));
        }
        Ok(())
    }

    fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(self.unsafe_because("it is a symbolic link".into()));
            }
            Err(error) => return Err(self.io("open", error)),
        };
        let metadata = file.metadata().map_err(|error| self.io("look at", error))?;
        if !metadata.is_file() {
            return Err(self.unsafe_because("it is no plain file".into()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(|error| self.io("read", error))?;
        Ok(Some(bytes))
    }

    fn set_aside(&self) -> Result<PathBuf, StoreError> {
        /// Names tried; a restart loop with a damaged file each second ends here.
        const TRIES: u32 = 1000;
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        for number in 0..TRIES {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".damaged-{seconds}-{number}"));
            let aside = PathBuf::from(name);
            // A hard link, unlike a rename, never replaces a file that is there.
            match fs::hard_link(&self.path, &aside) {
                Ok(()) => {
                    fs::remove_file(&self.path).map_err(|error| self.io("set aside", error))?;
                    return Ok(aside);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.io("set aside", error)),
            }
        }
        Err(self.io("set aside", io::ErrorKind::AlreadyExists.into()))
    }

    fn io(&self, tried: &'static str, error: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), tried, error }
    }

    fn unsafe_because(&self, why: String) -> StoreError {
        StoreError::Unsafe { path: self.path.clone(), why }
    }
}

fn encode(stored: &Stored) -> serde_json::Result<Vec<u8>> {
    let mut body = serde_json::to_vec_pretty(stored)?;
    body.push(b'\n');
    let mut bytes =
        format!("{MAGIC} {VERSION} {:08x} {}\n", crc32fast::hash(&body), body.len()).into_bytes();
    bytes.append(&mut body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Stored, String> {
    if bytes.len() as u64 > MAX_LEN {
        return Err(format!("longer than {MAX_LEN} bytes"));
    }
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or("no header line")?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| "the header is no text")?;
    let fields: Vec<&str> = header.split(' ').collect();
    let &[MAGIC, version, crc, length] = fields.as_slice() else {
        return Err("the header is not graylb's".into());
    };
    if version != VERSION.to_string() {
        return Err(format!("version {version}, this graylb reads {VERSION}"));
    }
    if length != body.len().to_string() {
        return Err(format!("{length} bytes announced, {} there", body.len()));
    }
    if crc != format!("{:08x}", crc32fast::hash(body)) {
        return Err("the checksum does not match".into());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The running boot's id.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
