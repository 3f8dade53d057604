//! The state file, damaged in every way: the agent starts or says why not, sets the file aside, and uses
//! nothing of it.

use std::{fs, os::unix::fs as unix_fs, path::PathBuf};

use graylb_tests::{agent::Installation, stage::Stage};

/// A stage whose agent has switched to the other pool and stopped; the state file's contents.
fn switched() -> (Stage, Vec<u8>) {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    stage.installation.api().switch("demo", "lua_upstream");
    agent.stop();
    let state = fs::read(stage.installation.state_file()).expect("read the state file");
    (stage, state)
}

/// Files beside the state file.
fn aside(installation: &Installation) -> Vec<PathBuf> {
    let state = installation.state_file();
    let directory = state.parent().expect("a directory");
    let entries = fs::read_dir(directory).expect("read the directory");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| *path != state).collect()
}

/// Starts the agent on a damaged file, and sees it set aside, unchanged, for the reason `why`.
fn check_damage(damage: impl Fn(&[u8]) -> Vec<u8>, why: &str) {
    let (stage, state) = switched();
    let installation = &stage.installation;
    let damaged = damage(&state);
    fs::write(installation.state_file(), &damaged).expect("damage the state file");
    let agent = installation.start();
    let log = installation.log();
    let aside = aside(installation);
    let [aside] = aside.as_slice() else { panic!("{aside:?}\n{log}") };
    let warning = format!(
        "state file {} is damaged ({why}): set aside as {}, going on with nothing switched",
        installation.state_file().display(),
        aside.display()
    );
    assert!(log.contains(&warning), "no {warning:?} in {log}");
    assert_eq!(fs::read(aside).expect("read what was set aside"), damaged);
    assert_eq!(agent.status()["services"][0]["overridden"], false);
    assert_eq!(stage.turns(2), ["81", "82"], "nothing of the file is used");

    // It is whole again after the next switch.
    installation.api().switch("demo", "lua_upstream");
    agent.kill();
    let _agent = installation.start();
    assert_eq!(stage.turns(2), ["83", "84"]);
}

#[test]
fn whole() {
    let (stage, _) = switched();
    let agent = stage.installation.start();
    assert_eq!(agent.status()["services"][0]["pool"], "lua_upstream");
    assert_eq!(stage.turns(2).len(), 2);
    assert_eq!(aside(&stage.installation), [PathBuf::new(); 0]);
}

#[test]
fn truncated() {
    let length = switched().1.split(|&byte| byte == b'\n').next().map_or(0, <[u8]>::len);
    let (_, state) = switched();
    let body = state.len() - length - 1;
    let why = format!("{body} bytes announced, {} there", body - 10);
    check_damage(|state| state[..state.len() - 10].to_vec(), &why);
    check_damage(|state| state[..8].to_vec(), "no header line");
}

#[test]
fn empty() {
    check_damage(|_| Vec::new(), "no header line");
}

#[test]
fn random_bytes() {
    let noise =
        |_: &[u8]| (0..4096_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    check_damage(noise, "the header is no text");
    check_damage(|_| b"hello world\n{}\n".to_vec(), "the header is not graylb's");
}

#[test]
fn one_byte_changed() {
    let change = |state: &[u8]| {
        // A pool that does not exist, were it believed.
        String::from_utf8_lossy(state).replace("lua_upstream", "lua_upstreom").into_bytes()
    };
    check_damage(change, "the checksum does not match");
}

#[test]
fn from_a_later_version() {
    let later = |state: &[u8]| {
        String::from_utf8_lossy(state)
            .replacen("graylb-state 1 ", "graylb-state 2 ", 1)
            .into_bytes()
    };
    check_damage(later, "version 2, this graylb reads 1");
}

#[test]
fn a_symbolic_link_is_refused() {
    let (stage, state) = switched();
    let installation = &stage.installation;
    let elsewhere = stage.sandbox.directory().join("elsewhere.json");
    fs::rename(installation.state_file(), &elsewhere).expect("move the state file");
    unix_fs::symlink(&elsewhere, installation.state_file()).expect("link");
    let ran = installation.fail_to_start(&installation.config_file());
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("it is a symbolic link; use a directory that only"), "{ran:?}");
    assert_eq!(fs::read(elsewhere).expect("read it"), state, "it is left alone");
    assert_eq!(stage.turns(2).len(), 2, "traffic goes on");
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (stage, _) = switched();
    let installation = &stage.installation;
    let directory = installation.state_file().parent().expect("a directory").to_owned();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("open it up");
    let ran = installation.fail_to_start(&installation.config_file());
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("can be written by others (mode 777)"), "{ran:?}");
}
