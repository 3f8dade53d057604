//! Where unsafe code may be, and that it says why it is sound.

use super::{Finding, Source, words::find_word};

/// Beginnings of the eBPF programs' only files with unsafe code: packet access and map access.
const EBPF_UNSAFE: [&str; 2] = ["graylb-ebpf/src/access", "graylb-ebpf/src/maps"];
/// Lines above an unsafe block that are searched for its reason.
const REACH: usize = 12;

/// Whether a file of the eBPF programs is packet access or map access.
pub(super) fn may_be_unsafe(source: &Source) -> bool {
    EBPF_UNSAFE.iter().any(|start| source.path.starts_with(start))
}

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let expected = source.views.code.contains("[expect(unsafe_code");
    for (number, line) in source.views.code.lines().enumerate() {
        let Some(at) = find_word(line, "unsafe") else { continue };
        let what = line[at + "unsafe".len()..].trim_start();
        // An attribute such as #[unsafe(no_mangle)], which the compiler insists on.
        if what.starts_with('(') {
            continue;
        }
        let mut find = |what: &str| findings.push(Finding::new(source, number, what));
        if source.path.starts_with("graylb-ebpf/") {
            if !may_be_unsafe(source) {
                find("unsafe outside of access and maps: put the access there and call it");
            }
        } else if !expected {
            find(
                "unsafe without #![expect(unsafe_code, reason = ...)]: give the reason, or do without",
            );
        }
        if (what.starts_with('{') || what.starts_with("impl") || what.is_empty())
            && !has_reason(source, number)
        {
            find("unsafe without a SAFETY comment above: name the check and why it still holds");
        }
    }
    findings
}

/// Whether a SAFETY comment belongs to line `number`: in it, or above it with no other statement's end
/// between.
fn has_reason(source: &Source, number: usize) -> bool {
    let code: Vec<&str> = source.views.code.lines().collect();
    let comments: Vec<&str> = source.views.comments.lines().collect();
    for above in (number.saturating_sub(REACH)..=number).rev() {
        if comments[above].contains("SAFETY:") {
            return true;
        }
        let ends = |line: &str| line.ends_with([';', '{', '}']);
        if above < number && ends(code[above].trim_end()) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "#![expect(unsafe_code, reason = \"x\")]\n";

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn the_programs_have_their_places() {
        let text = "// SAFETY: checked above.\nlet x = unsafe { *p };\n";
        assert_eq!(found("graylb-ebpf/src/maps.rs", text).len(), 0);
        assert!(found("graylb-ebpf/src/tcp.rs", text)[0].contains("access and maps"));
        assert_eq!(found("graylb-ebpf/src/main.rs", "#[unsafe(no_mangle)]\n").len(), 0);
    }

    #[test]
    fn elsewhere_it_is_announced() {
        let text = "// SAFETY: plain data.\nunsafe impl Pod for A {}\n";
        assert!(found("graylb-common/src/a.rs", text)[0].contains("expect(unsafe_code"));
        assert_eq!(found("graylb-common/src/a.rs", &format!("{REASON}{text}")).len(), 0);
        assert_eq!(found("graylb-common/src/a.rs", "fn unsafe_places() {} // unsafe\n").len(), 0);
    }

    #[test]
    fn each_block_has_its_own_reason() {
        let text = format!(
            "{REASON}// SAFETY: checked.\nlet x = unsafe {{ *p }};\nlet y = unsafe {{ *q }};\n"
        );
        assert!(found("graylb-agent/src/apply/a.rs", &text)[0].contains("SAFETY"));
        let above_a_long_statement =
            format!("{REASON}// SAFETY: checked.\nlet x = f(\n    1,\n    unsafe {{ *p }},\n);\n");
        assert_eq!(found("graylb-agent/src/apply/a.rs", &above_a_long_statement).len(), 0);
    }
}
