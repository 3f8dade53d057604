//! TCP flows, packet by packet: handshake, promotion, data, end, on every path.

use graylb_agent::model::spec::Protocol::Tcp;
use graylb_common::verdict::Verdict;
use graylb_tests::packet::{
    builder::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG},
    case::{
        Case,
        Count::{Closed, Established as Est, Opened, Refused, Unanswered},
        Leaves::{Established, HalfOpen, Nothing},
        Step, backend, client, run_all,
    },
    path::Path,
};

/// The client's initial sequence number.
const C: u32 = 1_000;
/// The backend's.
const S: u32 = 0x8000_0000;

const SYN_TO_0: Step = client(SYN).numbers(C, 0).counts(&[(0, Opened)]).leaves(HalfOpen(0));
const SYN_ACK: Step = backend(0, SYN | ACK).numbers(S, C + 1).leaves(HalfOpen(0));
const HANDSHAKE_ENDS: Step =
    client(ACK).numbers(C + 1, S + 1).counts(&[(0, Est)]).leaves(Established(0));

const CASES: &[Case] = &[
    Case {
        name: "a connection from SYN to both FINs, the client's first",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(ACK | PSH).numbers(C + 1, S + 1).data(7),
            backend(0, ACK).numbers(S + 1, C + 8).data(1000),
            backend(0, ACK | PSH).numbers(S + 1001, C + 8).data(1),
            client(ACK).numbers(C + 8, S + 1002),
            client(FIN | ACK).numbers(C + 8, S + 1002),
            backend(0, ACK).numbers(S + 1002, C + 9),
            backend(0, FIN | ACK).numbers(S + 1002, C + 9).counts(&[(0, Closed)]),
            client(ACK).numbers(C + 9, S + 1003).leaves(Established(0)),
        ],
    },
    Case {
        name: "both FINs, the backend's first, each sent twice: one end is counted",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            backend(0, FIN | ACK).numbers(S + 1, C + 1),
            backend(0, FIN | ACK).numbers(S + 1, C + 1),
            client(FIN | ACK).numbers(C + 1, S + 2).counts(&[(0, Closed)]),
            client(FIN | ACK).numbers(C + 1, S + 2),
            backend(0, ACK).numbers(S + 2, C + 2),
        ],
    },
    Case {
        name: "the client resets, again and again: one end is counted",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(RST).numbers(C + 1, 0).counts(&[(0, Closed)]),
            client(RST).numbers(C + 1, 0),
            client(RST | ACK).numbers(C + 1, S + 1),
            backend(0, RST).numbers(S + 1, 0),
        ],
    },
    Case {
        name: "the backend resets between the FINs: one end is counted",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(FIN | ACK).numbers(C + 1, S + 1),
            backend(0, RST | ACK).numbers(S + 1, C + 2).counts(&[(0, Closed)]),
            backend(0, FIN | ACK).numbers(S + 1, C + 2),
        ],
    },
    Case {
        name: "the backend refuses, twice: counted once, and the reset reaches the client",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            backend(0, RST | ACK).numbers(0, C + 1).counts(&[(0, Refused)]).leaves(HalfOpen(0)),
            backend(0, RST | ACK).numbers(0, C + 1),
        ],
    },
    Case {
        name: "the same SYN again goes to the same backend, a new one selects anew",
        protocol: Tcp,
        pool: &[0, 1],
        steps: &[
            SYN_TO_0,
            client(SYN).numbers(C, 0).to(0).counts(&[(0, Unanswered)]).leaves(HalfOpen(0)),
            client(SYN).numbers(C, 0).to(0).leaves(HalfOpen(0)),
            client(SYN).numbers(C + 9, 0).to(1).counts(&[(1, Opened)]).leaves(HalfOpen(1)),
            client(SYN).numbers(C + 9, 0).to(1).counts(&[(1, Unanswered)]),
            backend(1, SYN | ACK).numbers(S, C + 10),
            client(SYN).numbers(C + 9, 0).to(1),
            client(ACK).numbers(C + 10, S + 1).to(1).counts(&[(1, Est)]).leaves(Established(1)),
        ],
    },
    Case {
        name: "a SYN with ECN set-up and data is a SYN",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            client(SYN | ECE | CWR)
                .numbers(C, 0)
                .data(33)
                .counts(&[(0, Opened)])
                .leaves(HalfOpen(0)),
            backend(0, SYN | ACK | ECE).numbers(S, C + 34),
            backend(0, SYN | ACK | ECE).numbers(S, C + 1),
            HANDSHAKE_ENDS,
        ],
    },
    Case {
        name: "data completes the handshake where the bare acknowledgement was lost",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            client(ACK | PSH)
                .numbers(C + 1, S + 1)
                .data(99)
                .counts(&[(0, Est)])
                .leaves(Established(0)),
        ],
    },
    Case {
        name: "numbers wrap around",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            client(SYN).numbers(u32::MAX, 0).counts(&[(0, Opened)]),
            backend(0, SYN | ACK).numbers(u32::MAX, 0),
            client(ACK).numbers(0, 0).counts(&[(0, Est)]).leaves(Established(0)),
        ],
    },
    Case {
        name: "a SYN-ACK sent again before and after the promotion reaches the client",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            SYN_ACK,
            HANDSHAKE_ENDS,
            backend(0, SYN | ACK).numbers(S, C + 1).leaves(Established(0)),
            client(ACK).numbers(C + 1, S + 1),
        ],
    },
    Case {
        name: "a handshake given up: the client's reset promotes nothing and counts nothing",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            client(RST).numbers(C + 1, 0).leaves(HalfOpen(0)),
            client(RST | ACK).numbers(C + 1, S + 1).leaves(HalfOpen(0)),
        ],
    },
    Case {
        name: "of no flow: whatever is no SYN is this host's own",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            client(ACK).numbers(C, S).passes(Verdict::NoFlow).leaves(Nothing),
            client(ACK | PSH).numbers(C, S).data(5).passes(Verdict::NoFlow),
            client(SYN | ACK).numbers(C, S).passes(Verdict::NoFlow),
            client(FIN | ACK).numbers(C, S).passes(Verdict::NoFlow),
            client(RST).numbers(C, S).passes(Verdict::NoFlow),
            client(0).numbers(C, S).passes(Verdict::NoFlow),
            client(FIN | PSH | URG).numbers(C, S).passes(Verdict::NoFlow).leaves(Nothing),
        ],
    },
    Case {
        name: "no backend in force: a SYN is dropped, the rest is as without a flow",
        protocol: Tcp,
        pool: &[],
        steps: &[
            client(SYN).numbers(C, 0).drops(Verdict::NoBackend).leaves(Nothing),
            client(ACK).numbers(C, 0).passes(Verdict::NoFlow),
        ],
    },
];

#[test]
fn connections() {
    run_all(CASES, &Path::all());
}
