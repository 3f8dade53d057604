//! TCP flows under forged, repeated and late packets, under switches, and on tuples used again.

use graylb_agent::model::spec::Protocol::Tcp;
use graylb_tests::packet::{
    builder::{ACK, FIN, PSH, RST, SYN},
    case::{
        Case,
        Count::{Closed, Established as Est, Opened, Refused, Unanswered},
        Leaves::{Both, Established, HalfOpen},
        Step, backend, client, run_all, switch,
    },
    path::Path,
};

/// The client's initial sequence number.
const C: u32 = 1_000;
/// That of its next connection from the same port, or of a forger.
const C2: u32 = 777_000;
/// The backends'.
const S: u32 = 0xffff_fffe;
const S2: u32 = 123_456;

const SYN_TO_0: Step = client(SYN).numbers(C, 0).counts(&[(0, Opened)]).leaves(HalfOpen(0));
const SYN_ACK: Step = backend(0, SYN | ACK).numbers(S, C + 1);
const HANDSHAKE_ENDS: Step =
    client(ACK).numbers(C + 1, S.wrapping_add(1)).counts(&[(0, Est)]).leaves(Established(0));
const DATA: Step = client(ACK | PSH).numbers(C + 1, S.wrapping_add(1)).data(11);
const ANSWER: Step = backend(0, ACK | PSH).numbers(S.wrapping_add(1), C + 12).data(12);
/// A second SYN on the tuple, which is 1's turn.
const SYN_TO_1: Step = client(SYN).numbers(C2, 0).to(1).counts(&[(1, Opened)]);
const SYN_ACK_1: Step = backend(1, SYN | ACK).numbers(S2, C2 + 1);

const SWITCHES: &[Case] = &[
    Case {
        name: "a connection stays where it is after a switch, the next SYN follows it",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            switch(&[1]),
            DATA,
            ANSWER,
            SYN_TO_1.leaves(Both(0, 1)),
            DATA,
            client(FIN | ACK).numbers(C + 12, S),
            backend(0, FIN | ACK).numbers(S, C + 13).counts(&[(0, Closed)]),
        ],
    },
    Case {
        name: "a handshake under way is finished where it began, also when its SYN comes again",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            switch(&[1, 2]),
            client(SYN).numbers(C, 0).to(0).counts(&[(0, Unanswered)]),
            SYN_ACK,
            HANDSHAKE_ENDS,
            DATA,
        ],
    },
    Case {
        name: "a switch there and back lets every connection be",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            switch(&[1]),
            switch(&[]),
            DATA,
            switch(&[0]),
            ANSWER,
            client(SYN).numbers(C2, 0).counts(&[(0, Opened)]).leaves(Both(0, 0)),
        ],
    },
    Case {
        name: "a new connection from the port of one that ended takes the tuple over",
        protocol: Tcp,
        pool: &[0, 1],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(FIN | ACK).numbers(C + 1, S),
            backend(0, FIN | ACK).numbers(S, C + 2).counts(&[(0, Closed)]),
            SYN_TO_1.leaves(Both(0, 1)),
            SYN_ACK_1,
            client(ACK).numbers(C2 + 1, S2 + 1).to(1).counts(&[(1, Est)]).leaves(Established(1)),
            client(ACK | PSH).numbers(C2 + 1, S2 + 1).to(1).data(9),
            backend(1, ACK).numbers(S2 + 1, C2 + 10).data(9),
            client(RST).numbers(C2 + 10, 0).to(1).counts(&[(1, Closed)]),
        ],
    },
    Case {
        name: "a new connection from the port of one that ended, to the same backend",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(RST).numbers(C + 1, 0).counts(&[(0, Closed)]),
            client(SYN).numbers(C2, 0).counts(&[(0, Opened)]).leaves(Both(0, 0)),
            backend(0, SYN | ACK).numbers(S2, C2 + 1),
            client(ACK).numbers(C2 + 1, S2 + 1).counts(&[(0, Est)]).leaves(Established(0)),
            client(RST).numbers(C2 + 1, 0).counts(&[(0, Closed)]),
        ],
    },
    Case {
        name: "a new connection from the port of one that ended is refused: that counts",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(RST).numbers(C + 1, 0).counts(&[(0, Closed)]),
            client(SYN).numbers(C2, 0).counts(&[(0, Opened)]),
            backend(0, RST | ACK).numbers(0, C2 + 1).counts(&[(0, Refused)]),
            backend(0, RST | ACK).numbers(0, C2 + 1),
        ],
    },
];

const FORGERIES: &[Case] = &[
    Case {
        name: "an acknowledgement of another number promotes nothing",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            client(ACK).numbers(C + 1, 0).leaves(HalfOpen(0)),
            client(ACK).numbers(C + 1, 1).leaves(HalfOpen(0)),
            SYN_ACK,
            client(ACK).numbers(C + 1, S).leaves(HalfOpen(0)),
            client(ACK).numbers(C + 1, S.wrapping_add(2)).leaves(HalfOpen(0)),
            client(ACK | RST).numbers(C + 1, S.wrapping_add(1)).leaves(HalfOpen(0)),
            client(PSH).numbers(C + 1, S.wrapping_add(1)).leaves(HalfOpen(0)),
            HANDSHAKE_ENDS,
        ],
    },
    Case {
        name: "a SYN-ACK of another number lets nothing be promoted",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            backend(0, SYN | ACK).numbers(S2, C).leaves(HalfOpen(0)),
            backend(0, SYN | ACK).numbers(S2, C + 2).leaves(HalfOpen(0)),
            client(ACK).numbers(C + 1, S2 + 1).leaves(HalfOpen(0)),
            SYN_ACK,
            client(ACK).numbers(C + 1, S2 + 1).leaves(HalfOpen(0)),
            HANDSHAKE_ENDS,
        ],
    },
    Case {
        name: "a SYN-ACK from the client's side answers nobody",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            client(SYN | ACK).numbers(S, C + 1),
            backend(0, ACK).numbers(C + 1, S.wrapping_add(1)).leaves(HalfOpen(0)),
            client(ACK).numbers(C + 1, S.wrapping_add(1)).leaves(HalfOpen(0)),
            SYN_ACK,
            HANDSHAKE_ENDS,
        ],
    },
    Case {
        name: "a forged SYN on a connection's tuple disturbs it not",
        protocol: Tcp,
        pool: &[0, 1],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            SYN_TO_1.leaves(Both(0, 1)),
            DATA,
            ANSWER,
            // What follows from it at the client: it answers the strange SYN-ACK with what it is at.
            SYN_ACK_1,
            client(ACK).numbers(C + 12, S.wrapping_add(13)).leaves(Both(0, 1)),
            backend(1, RST).numbers(C2 + 1, 0),
            DATA,
            ANSWER,
            client(FIN | ACK).numbers(C + 12, S),
            backend(0, FIN | ACK).numbers(S, C + 13).counts(&[(0, Closed)]),
        ],
    },
    Case {
        name: "forged SYNs one after another, also to the connection's own backend",
        protocol: Tcp,
        pool: &[0, 1],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(SYN).numbers(C2, 0).to(1).counts(&[(1, Opened)]),
            client(SYN).numbers(C2 + 1, 0).to(0).counts(&[(0, Opened)]).leaves(Both(0, 0)),
            DATA,
            ANSWER,
            // RFC 5961, 4: the backend answers a SYN on a connection with an acknowledgement.
            backend(0, ACK).numbers(S.wrapping_add(1), C + 12),
            client(ACK).numbers(C + 12, S.wrapping_add(13)).leaves(Both(0, 0)),
            client(RST | ACK).numbers(C + 12, S.wrapping_add(13)).counts(&[(0, Closed)]),
        ],
    },
    Case {
        name: "a backend's reset of a connection is no refusal of the forged SYN beside it",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            SYN_ACK,
            HANDSHAKE_ENDS,
            client(SYN).numbers(C2, 0).counts(&[(0, Opened)]).leaves(Both(0, 0)),
            backend(0, RST).numbers(S.wrapping_add(1), 0).counts(&[(0, Closed)]),
        ],
    },
    Case {
        name: "a reset with another number is no refusal",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            backend(0, RST).numbers(0, 0),
            backend(0, RST | ACK).numbers(0, C),
            backend(0, RST | ACK).numbers(0, C + 1).counts(&[(0, Refused)]),
        ],
    },
    Case {
        name: "what a backend sends that was not asked is nobody's reply",
        protocol: Tcp,
        pool: &[0],
        steps: &[
            SYN_TO_0,
            backend(1, SYN | ACK).numbers(S2, C + 1).is_foreign(),
            SYN_ACK,
            HANDSHAKE_ENDS,
            backend(1, ACK | PSH).numbers(S.wrapping_add(1), C + 1).data(8).is_foreign(),
            backend(1, RST).numbers(S.wrapping_add(1), 0).is_foreign(),
            backend(1, SYN).numbers(S, 0).is_foreign(),
            DATA,
        ],
    },
];

#[test]
fn switches() {
    run_all(SWITCHES, &Path::all());
}

#[test]
fn forgeries() {
    run_all(FORGERIES, &Path::all());
}
