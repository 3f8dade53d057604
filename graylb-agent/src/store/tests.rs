//! The state file: written whole, read back, refused where it is not safe.

use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::model::{
    changes::{CanaryOverride, Overrides},
    choice::PoolChoice,
    split::Canary,
};

/// A switch, a share and a rule, and what was before.
fn changes() -> Changes {
    let pool = |name: &str| PoolChoice::Pool(Name::new(name).expect("name"));
    let canary = Canary { pool: pool("red"), share: "5%".parse().expect("a share") };
    let none = Changes::default();
    let switched = Overrides { stable: Some(pool("green")), ..Overrides::default() };
    let split = Overrides {
        canary: Some(CanaryOverride::Some(canary)),
        rules: Some([("192.0.2.0/24".parse().expect("a network"), pool("red"))].into()),
        ..switched.clone()
    };
    none.with(switched).with(split)
}

fn sample() -> Stored {
    Stored {
        rollouts: BTreeMap::new(),
        changes: BTreeMap::from([(Name::new("shop").expect("name"), changes())]),
        health: BTreeMap::from([(
            "green".into(),
            BTreeMap::from([("127.0.0.1:80".parse().expect("address"), HealthState::Up)]),
        )]),
        drained: [("green".into(), ["127.0.0.1:80".parse().expect("address")].into())].into(),
        boot_id: "a-boot".into(),
    }
}

fn saved() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = TempDir::with_prefix("graylb-test-").expect("directory");
    let path = dir.path().join("state.json");
    let (mut store, stored, notes) = Store::open(&path).expect("open");
    assert_eq!((stored, notes), (Stored::default(), vec![]));
    store.save(&sample()).expect("save");
    let bytes = fs::read(&path).expect("read");
    (dir, path, bytes)
}

/// Opens `bytes` as a state file: it must be either refused and set aside untouched, or the sample.
fn open_damaged(dir: &TempDir, path: &Path, bytes: &[u8]) -> bool {
    fs::write(path, bytes).expect("write");
    let (_, stored, notes) = Store::open(path).expect("open");
    if stored == sample() {
        return false;
    }
    assert_eq!(stored, Stored::default());
    assert!(notes[0].contains("set aside as"), "{notes:?}");
    assert!(!path.exists());
    let aside: Vec<_> = fs::read_dir(dir.path())
        .expect("directory")
        .map(|entry| entry.expect("entry").path())
        .filter(|aside| aside.to_string_lossy().contains(".damaged-"))
        .collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).expect("aside"), bytes);
    fs::remove_file(&aside[0]).expect("remove");
    true
}

#[test]
fn what_was_saved_is_read() {
    let (_dir, path, _) = saved();
    let (_, stored, notes) = Store::open(&path).expect("open");
    assert_eq!((stored, notes), (sample(), vec![]));
}

#[test]
fn every_truncation_and_every_changed_byte_is_noticed() {
    let (dir, path, bytes) = saved();
    for length in 0..bytes.len() {
        assert!(open_damaged(&dir, &path, &bytes[..length]), "cut to {length}");
    }
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x11;
        assert!(open_damaged(&dir, &path, &damaged), "byte {place}");
    }
    assert!(open_damaged(&dir, &path, &[&bytes[..], b"x"].concat()));
}

#[test]
fn a_file_of_the_future_is_set_aside() {
    let (dir, path, bytes) = saved();
    let text =
        String::from_utf8(bytes).expect("text").replacen("graylb-state 2", "graylb-state 3", 1);
    assert!(open_damaged(&dir, &path, text.as_bytes()));
}

#[test]
fn unsafe_places_are_refused() {
    let (dir, path, _) = saved();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("link");
    let error = Store::open(&link).expect_err("a link").to_string();
    assert!(error.contains("symbolic link"), "{error}");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("mode");
    let error = Store::open(&path).expect_err("writable by others").to_string();
    assert!(error.contains("written by others"), "{error}");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    let error = Store::open(dir.path().join("sub").as_path()).and_then(|_| {
        fs::create_dir(dir.path().join("sub")).expect("directory");
        Store::open(&dir.path().join("sub"))
    });
    assert!(error.is_err());
}

#[test]
fn a_failed_save_leaves_the_file_as_it_was() {
    let (dir, path, bytes) = saved();
    let (mut store, mut stored, _) = Store::open(&path).expect("open");
    // A directory in the temporary file's place cannot be replaced.
    fs::create_dir(dir.path().join("state.json.tmp")).expect("directory");
    stored.boot_id = "another".into();
    assert!(store.save(&stored).is_err());
    assert_eq!(fs::read(&path).expect("read"), bytes);
}

#[test]
fn a_temporary_file_left_behind_is_removed() {
    let (dir, path, _) = saved();
    let temporary = dir.path().join("state.json.tmp");
    fs::write(&temporary, "half").expect("write");
    let (_, stored, _) = Store::open(&path).expect("open");
    assert_eq!(stored, sample());
    assert!(!temporary.exists());
}

#[test]
fn unchanged_state_is_not_written_again() {
    let (_dir, path, _) = saved();
    let (mut store, stored, _) = Store::open(&path).expect("open");
    let before = fs::metadata(&path).expect("file").ino();
    store.save(&stored).expect("save");
    assert_eq!(fs::metadata(&path).expect("file").ino(), before);
}
