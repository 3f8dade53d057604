//! The agent's capabilities: once everything is loaded, those that it still needs, for good.
//!
//! Capabilities belong to threads: this is for the first one, before there are others, which inherit what it
//! has. Programs that the agent runs (probes) get no more than it has itself.

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
        set_capabilities,
    },
};

/// What is kept, and why.
pub const KEPT: &[(&str, CapabilitySet)] = &[
    // Maps, and the socket hook's programs, which are loaded when they are wanted.
    ("CAP_BPF", CapabilitySet::BPF),
    // Without it older verifiers (6.12) do not follow pointers through the stack, and refuse those programs.
    ("CAP_PERFMON", CapabilitySet::PERFMON),
    // Attaching to interfaces and cgroups that appear later.
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    // Commands that probes run may want to ping.
    ("CAP_NET_RAW", CapabilitySet::NET_RAW),
];

/// Gives up all but [`KEPT`], for this thread, those that it starts from now on, and the programs that they
/// run.
///
/// # Errors
///
/// The kernel refuses.
pub fn reduce() -> Result<(), Errno> {
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |all, (_, one)| all | *one);
    let now = capabilities(None)?;
    // First the bounding set, which takes a capability that is about to go.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
        for one in all.filter(|one| !kept.contains(*one)) {
            match remove_capability_from_bounding_set(one) {
                // The kernel's capabilities end here.
                Err(Errno::INVAL) => break,
                result => result?,
            }
        }
    }
    let reduced = now.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: reduced,
            permitted: reduced,
            inheritable: CapabilitySet::empty(),
        },
    )
}
