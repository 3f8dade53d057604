//! Frames that really go on after a program: XDP's live frames (BPF_F_TEST_XDP_LIVE_FRAMES) enter the
//! stack, and TC sees them there as it sees frames from a NIC, their VLAN tags taken off.

use std::time::{Duration, Instant};

use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use graylb_agent::{
    apply::Effort,
    config::{AttachMode, InterfaceConfig},
    model::interfaces::{Pattern, plan},
    netlink::Watcher,
};
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{Packet, SYN},
    lab::{Lab, counted, tcp, udp},
    path::{Path, Place},
    run::{Hook, xdp_md},
    topology::{EXT, EXT_NAME, Family},
};

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
/// By when a frame has gone through the stack.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends a frame through XDP into the stack, and waits until both programs have counted it.
fn send(lab: &Lab, name: &str, packet: &[u8], expected: &[(Verdict, u64)]) {
    let before = lab.verdicts();
    let context = xdp_md(packet, EXT);
    let options = TestRunOptions {
        data_in: Some(packet),
        ctx_in: Some(&context),
        attrs: TestRunAttrs::new().xdp_live_frames(1),
        ..TestRunOptions::default()
    };
    lab.programs().xdp().test_run(options).expect("run live frames (Linux 5.18)");
    let started = Instant::now();
    let mut found = counted(&before, &lab.verdicts());
    while found != expected && started.elapsed() < DEADLINE {
        std::thread::yield_now();
        found = counted(&before, &lab.verdicts());
    }
    assert_eq!(found, expected, "{name}");
}

#[test]
fn a_tag_is_seen_wherever_the_kernel_keeps_it() {
    Lab::with(|lab| {
        let rule = InterfaceConfig {
            pattern: Pattern::new(EXT_NAME).expect("a name"),
            attach: AttachMode::Tc,
        };
        let devices = Watcher::open().expect("netlink").devices();
        let wanted = plan(&[rule], &devices).wanted;
        let attached = lab.plane.attach(&wanted, Effort::Everything);
        assert!(attached.refused.is_empty(), "{:?}", attached.refused);
        for family in Family::ALL {
            let path = Path { hook: Hook::Tc, place: Place::Routed, family };
            let service = path.service(lab.port());
            lab.put(tcp(service), "live", &[(path.backend(0), 1)]);
            lab.put(udp(service), "live", &[(path.backend(0), 1)]);
            let client = path.client(lab.number());
            let syn = path.from_client(Packet::tcp(client, service, SYN));
            let datagram = path.from_client(Packet::udp(client, service).filled(5));
            for (name, packet) in [
                ("VLAN", syn.clone().tagged(VLAN, 7)),
                ("VLAN, UDP", datagram.tagged(VLAN, 7)),
                ("QinQ", syn.tagged(VLAN, 7).tagged(QINQ, 8)),
            ] {
                let name = format!("{name}, {family:?}");
                send(lab, &name, &packet.bytes(), &[(Verdict::Vlan, 2)]);
            }
            let counters = lab.counters(tcp(service))[&path.backend(0)];
            assert_eq!(counters.opened, 0, "{family:?}");
        }
    });
}
