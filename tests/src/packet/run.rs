//! One packet through one program: where it enters, what comes out, what was to come out.

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use graylb_common::{maps, verdict::Verdict};

use super::{builder::Packet, checksum_complete};
use crate::sandbox::Sandbox;

/// A program, and for TC the state of the packet's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP.
    Xdp,
    /// TC on the way in, nothing known about the checksum (CHECKSUM_NONE).
    Tc,
    /// TC on the way in, with a sum over the whole packet from the NIC (CHECKSUM_COMPLETE), which must
    /// still be right when the packet leaves. Kernels without the flag for it run as [`Hook::Tc`].
    TcSummed,
    /// TC on the way out, the packet from a socket of this host.
    TcOut,
}

impl Hook {
    /// Those on the way in.
    pub const IN: [Self; 3] = [Self::Xdp, Self::Tc, Self::TcSummed];
}

/// A hook on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The hook.
    pub hook: Hook,
    /// Index of the interface.
    pub interface: u32,
}

/// What the program tells the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on as if there were no program (XDP_PASS, TC_ACT_UNSPEC).
    Pass,
    /// Drop (XDP_DROP, TC_ACT_SHOT).
    Drop,
    /// Back out of the same interface (XDP_TX).
    Transmit,
    /// Out of another interface (XDP_REDIRECT, TC_ACT_REDIRECT).
    Redirect,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's return value.
    pub action: Action,
    /// The packet as it left.
    pub bytes: Vec<u8>,
}

/// The packet left with a sum over all of it that is not right any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet left with a wrong CHECKSUM_COMPLETE sum")]
pub struct WrongSum;

/// What is to come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The one verdict counted.
    pub verdict: Verdict,
    /// The return value.
    pub action: Action,
    /// The packet; `None` where it is dropped and nobody sees it again.
    pub bytes: Option<Vec<u8>>,
}

impl Expected {
    /// This verdict, action and packet.
    #[must_use]
    pub const fn new(verdict: Verdict, action: Action, bytes: Vec<u8>) -> Self {
        Self { verdict, action, bytes: Some(bytes) }
    }

    /// Handed on byte by byte as it came.
    #[must_use]
    pub fn unchanged(verdict: Verdict, bytes: &[u8]) -> Self {
        Self::new(verdict, Action::Pass, bytes.to_vec())
    }

    /// Dropped.
    #[must_use]
    pub const fn dropped(verdict: Verdict) -> Self {
        Self { verdict, action: Action::Drop, bytes: None }
    }
}

impl From<&Packet> for Vec<u8> {
    fn from(packet: &Packet) -> Self {
        packet.bytes()
    }
}

/// The programs, opened by their pins.
#[derive(Debug)]
pub struct Programs {
    tc_in: SchedClassifier,
    tc_out: SchedClassifier,
    xdp: Xdp,
    summed: bool,
}

/// Room for what comes out: no program makes a packet longer.
const ROOM: usize = 4096;

impl Programs {
    /// Opens what an agent pinned in the sandbox.
    ///
    /// # Panics
    ///
    /// A program is not there.
    #[must_use]
    pub fn open(sandbox: &Sandbox) -> Self {
        let pins = sandbox.pin_dir().join(format!("abi-{}", graylb_common::abi::ABI_VERSION));
        let path = |name: &str| pins.join("programs").join(name);
        let tc = |name| SchedClassifier::from_pin(path(name)).expect("open a TC program's pin");
        let tc_in = tc(maps::PROGRAM_TC_IN);
        let summed = checksum_complete::supported(&tc_in);
        if !summed {
            eprintln!("this kernel cannot run tests with CHECKSUM_COMPLETE: run without");
        }
        Self {
            tc_in,
            tc_out: tc(maps::PROGRAM_TC_OUT),
            xdp: Xdp::from_pin(path(maps::PROGRAM_XDP), XdpAttachType::Interface)
                .expect("open the XDP program's pin"),
            summed,
        }
    }

    /// The XDP program.
    #[must_use]
    pub const fn xdp(&self) -> &Xdp {
        &self.xdp
    }

    /// Runs one packet, in this thread's network namespace.
    ///
    /// # Errors
    ///
    /// The sum that [`Hook::TcSummed`] gives the packet is wrong afterwards.
    ///
    /// # Panics
    ///
    /// The kernel refuses the run, or the program returns what none of ours may.
    pub fn run(&self, entry: Entry, packet: &[u8]) -> Result<Outcome, WrongSum> {
        let mut out = vec![0; ROOM];
        let context = match entry.hook {
            Hook::Xdp => xdp_md(packet, entry.interface),
            Hook::Tc | Hook::TcSummed => skb(entry.interface, entry.interface),
            Hook::TcOut => skb(entry.interface, 0),
        };
        let (value, length) = match entry.hook {
            Hook::Xdp => test_run(&self.xdp, &context, packet, &mut out),
            Hook::TcSummed if self.summed => {
                checksum_complete::test_run(&self.tc_in, &context, packet, &mut out)?
            }
            Hook::Tc | Hook::TcSummed => test_run(&self.tc_in, &context, packet, &mut out),
            Hook::TcOut => test_run(&self.tc_out, &context, packet, &mut out),
        };
        out.truncate(length);
        Ok(Outcome { action: action(entry.hook, value), bytes: out })
    }

    /// Runs a packet that this host forwards through the program on the way out.
    #[must_use]
    pub fn run_forwarded(&self, from: u32, to: u32, packet: &[u8]) -> Outcome {
        let mut out = vec![0; ROOM];
        let (value, length) = test_run(&self.tc_out, &skb(to, from), packet, &mut out);
        out.truncate(length);
        Outcome { action: action(Hook::TcOut, value), bytes: out }
    }
}

fn test_run<P>(program: &P, context: &[u8], packet: &[u8], out: &mut [u8]) -> (u32, usize)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(out),
        ctx_in: Some(context),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).expect("run the program");
    (result.return_value, result.data_size_out as usize)
}

/// A `struct xdp_md` (include/uapi/linux/bpf.h): data, data_end, data_meta, ingress_ifindex,
/// rx_queue_index, egress_ifindex.
#[must_use]
pub fn xdp_md(packet: &[u8], interface: u32) -> Vec<u8> {
    [0, packet.len() as u32, 0, interface, 0, 0].map(u32::to_ne_bytes).concat()
}

/// The start of a `struct __sk_buff` (include/uapi/linux/bpf.h): word 9 is ingress_ifindex, word 10
/// ifindex; the rest is zero, as bpf_prog_test_run_skb wants it.
fn skb(interface: u32, came_from: u32) -> Vec<u8> {
    let mut words = [0; 11];
    words[9] = came_from;
    words[10] = interface;
    words.map(u32::to_ne_bytes).concat()
}

/// The hook's number as an action (include/uapi/linux/bpf.h and pkt_cls.h).
fn action(hook: Hook, value: u32) -> Action {
    match (hook, value.cast_signed()) {
        (Hook::Xdp, 1) => Action::Drop,
        (Hook::Xdp, 2) => Action::Pass,
        (Hook::Xdp, 3) => Action::Transmit,
        (Hook::Xdp, 4) => Action::Redirect,
        (Hook::Tc | Hook::TcSummed | Hook::TcOut, -1) => Action::Pass,
        (Hook::Tc | Hook::TcSummed | Hook::TcOut, 2) => Action::Drop,
        (Hook::Tc | Hook::TcSummed | Hook::TcOut, 7) => Action::Redirect,
        (hook, value) => panic!("{hook:?} returned {value}, which no verdict leads to"),
    }
}
