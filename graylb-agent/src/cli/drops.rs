//! `graylb status --drops`, for people.

use std::fmt::{self, Write as _};

use graylb_common::verdict::VERDICTS;

use crate::daemon::StatusReport;

pub(super) fn table(report: &StatusReport, all: bool) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _infallible = write(&mut text, report, all);
    text
}

fn write(text: &mut String, report: &StatusReport, all: bool) -> fmt::Result {
    writeln!(text, "{:<16} {:<10} {:>14}  meaning", "verdict", "kind", "packets")?;
    for info in VERDICTS {
        let packets = report.verdicts.get(info.name).copied().unwrap_or_default();
        if packets > 0 || all {
            let (name, kind) = (info.name, info.kind.name());
            writeln!(text, "{name:<16} {kind:<10} {packets:>14}  {}", info.doc)?;
        }
    }
    for service in &report.services {
        let mut lines = service.drops.iter().filter(|(_, packets)| **packets > 0 || all).peekable();
        if lines.peek().is_some() {
            writeln!(
                text,
                "\nof these, for {} ({}/{}):",
                service.name, service.address, service.protocol
            )?;
        }
        for (verdict, packets) in lines {
            writeln!(text, "{verdict:<16} {:<10} {packets:>14}", "")?;
        }
    }
    Ok(())
}
