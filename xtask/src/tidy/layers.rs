//! Imports point one way: the model and the compiler of maps are pure, and aya stays where the kernel is
//! talked to.

use super::{Finding, Source, words::find_word};

/// Decide about traffic from data alone.
const PURE: [&str; 2] = ["graylb-agent/src/model/", "graylb-agent/src/compile/"];
/// What pure code has no use for.
const IMPURE: [&str; 9] = [
    "aya",
    "tokio",
    "axum",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "Instant",
    "SystemTime",
];
/// May name aya: the data plane's owner, the tests, and the types that are shared with it.
const AYA: [&str; 3] = ["graylb-agent/src/apply/", "tests/", "graylb-common/src/"];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let within = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
    let mut findings = Vec::new();
    let lines = source.views.code.lines().enumerate().take(source.lines_without_tests());
    for (number, line) in lines {
        if within(&PURE)
            && !source.is_test()
            && let Some(word) = IMPURE.into_iter().find(|word| find_word(line, word).is_some())
        {
            findings.push(Finding::new(
                source,
                number,
                format!("{word} in pure code: take time and results of I/O as arguments"),
            ));
        } else if !within(&AYA) && !within(&PURE) && find_word(line, "aya").is_some() {
            findings.push(Finding::new(
                source,
                number,
                "aya outside of apply/: add what is needed to the data plane's interface",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn pure_code_stays_pure() {
        let path = "graylb-agent/src/model/state.rs";
        for text in [
            "use tokio::time::sleep;\n",
            "use aya::Ebpf;\n",
            "fn now() -> std::time::Instant;\n",
            "use std::net::{IpAddr, TcpStream};\n",
        ] {
            assert_eq!(found(path, text), 1, "{text}");
            assert_eq!(found("graylb-agent/src/apply/mod.rs", text), 0, "{text}");
        }
        assert_eq!(found(path, "use std::{net::IpAddr, time::Duration};\n// aya, tokio\n"), 0);
        assert_eq!(found("graylb-agent/src/model/state/tests.rs", "use std::time::Instant;\n"), 0);
        assert_eq!(found(path, "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n}\n"), 0);
    }

    #[test]
    fn aya_stays_in_its_place() {
        assert_eq!(found("graylb-agent/src/api/mod.rs", "use aya::maps::MapData;\n"), 1);
        assert_eq!(found("graylb-agent/build.rs", "use aya_build::Package;\n"), 0);
    }
}
