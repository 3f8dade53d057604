//! Tests that cannot run on this machine say so here, where `cargo xtask test` sees it.

use std::{fs::OpenOptions, io::Write as _};

/// Where to write it, if a run wants to know.
const VARIABLE: &str = "GRAYLB_SKIP_LOG";

/// Notes that the test `name` returns without having tested, and why.
///
/// # Panics
///
/// The file that `GRAYLB_SKIP_LOG` names cannot be written: a skip must not go unseen.
pub fn skipped(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
    if let Some(file) = std::env::var_os(VARIABLE) {
        let mut log =
            OpenOptions::new().append(true).create(true).open(file).expect("open GRAYLB_SKIP_LOG");
        // One write, so that tests that skip at the same time do not mix their lines.
        log.write_all(format!("{name}: {why}\n").as_bytes()).expect("write GRAYLB_SKIP_LOG");
    }
}
