//! Verdicts: how each packet left the program. Number, name, kind and meaning are defined once, here;
//! the counters in the map, the names in `status` and the table in the docs are generated from it.

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerdictKind {
    /// It belongs to a flow and was sent on its way.
    Forwarded,
    /// It is none of graylb's business, or better left to the host: handed on unchanged.
    Passed,
    /// It was dropped.
    Dropped,
    /// It was turned into an answer to its sender.
    Answered,
}

impl VerdictKind {
    /// Its name in status, metrics and docs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::Answered => "answered",
        }
    }
}

/// One line of the table of verdicts.
#[derive(Clone, Copy, Debug)]
pub struct VerdictInfo {
    /// The verdict.
    pub verdict: Verdict,
    /// Its name in maps, metrics and docs.
    pub name: &'static str,
    /// What became of the packet.
    pub kind: VerdictKind,
    /// When this happens.
    pub doc: &'static str,
}

macro_rules! verdicts {
    ($( $kind:ident $variant:ident $name:ident : $doc:literal; )+) => {
        /// How a packet left the program, as a number: the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[must_use]
        pub enum Verdict {
            $( #[doc = $doc] $variant, )+
        }

        /// Packets by verdict. Value of the one-element per-CPU array `verdicts`.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct VerdictCounters {
            $( #[doc = $doc] pub $name: u64, )+
        }

        /// The table of verdicts, in the order of their numbers.
        pub const VERDICTS: &[VerdictInfo] = &[
            $( VerdictInfo {
                verdict: Verdict::$variant,
                name: stringify!($name),
                kind: VerdictKind::$kind,
                doc: $doc,
            }, )+
        ];

        impl Verdict {
            /// What becomes of a packet with this verdict.
            #[inline(always)]
            #[must_use]
            pub const fn kind(self) -> VerdictKind {
                match self {
                    $( Self::$variant => VerdictKind::$kind, )+
                }
            }
        }

        impl VerdictCounters {
            /// The counter of `verdict`.
            #[must_use]
            pub const fn get(&self, verdict: Verdict) -> u64 {
                match verdict {
                    $( Verdict::$variant => self.$name, )+
                }
            }

            /// Adds another CPU's counters to these.
            pub const fn add(&mut self, other: &Self) {
                $( self.$name = self.$name.wrapping_add(other.$name); )+
            }
        }
    };
}

verdicts! {
    Forwarded Redirected redirected: "rewritten and sent out of an interface towards its next hop";
    Forwarded Delivered delivered: "rewritten and handed up to this host, where the backend or the client is";
    Forwarded HandedToStack handed_to_stack: "rewritten and handed to the host's own forwarding: neighbour not resolved yet, packet over the MTU, or no route";
    Forwarded Replied replied: "reply of a backend on this host, rewritten on its way out";
    Forwarded IcmpError icmp_error: "ICMP error about a packet of a flow, translated like the flow and sent to the end that caused it";
    Forwarded SocketSteered socket_steered: "connection of a client on this host, or datagram of its unconnected socket, sent to the backend by the socket hook: none of the connection's packets is seen";
    Passed NotIp not_ip: "neither IPv4 nor IPv6 (ARP, LLDP, ...)";
    Passed Vlan vlan: "VLAN tag in the frame: put graylb on the VLAN's own interface";
    Passed OtherProtocol other_protocol: "neither TCP nor UDP, nor an ICMP error about a flow";
    Passed Fragment fragment: "fragment of an IP datagram of no flow, or whose first fragment has not been seen";
    Passed Ipv6Extension ipv6_extension: "IPv6 extension header before the transport header";
    Passed Truncated truncated: "frame ends before its headers do";
    Passed Malformed malformed: "IP version, header length or TCP offset that cannot be";
    Passed NotService not_service: "to no service and of no flow";
    Passed NoFlow no_flow: "TCP to a service, but no SYN and of no flow: this host answers with a reset, or owns the connection";
    Passed HostOutput host_output: "on its way out and no reply of a backend on this host";
    Answered TooBig too_big: "longer than the way to the backend allows, in a mode without this host's own forwarding: answered with ICMP's word for that";
    Answered EchoAnswered echo_answered: "echo request (ping) to a virtual address that is not this host's own: answered";
    Dropped NoBackend no_backend: "new flow, but the service has no backend in force";
    Dropped BadTable bad_table: "new flow, but the slot or backend that it was led to is not in use";
    Dropped NoTuple no_tuple: "new flow, but each tuple tried towards the backend is in use by another flow";
    Dropped FlowTableFull flow_table_full: "new flow, but the flow table took no entry";
    Dropped NoRoute no_route: "to a backend in a mode that keeps the virtual address: no route, or neighbour not resolved yet";
    Dropped FragmentShort fragment_short: "first fragment without all of its transport header, or a later one that reaches into it (RFC 1858)";
    Dropped TtlExceeded ttl_exceeded: "TTL or hop limit used up";
    Dropped RewriteFailed rewrite_failed: "the kernel refused to make the packet writable, longer or shorter";
}

macro_rules! service_verdicts {
    ($( $variant:ident $name:ident; )+) => {
        /// Packets by verdict, of those verdicts that mean trouble and come after the service is known.
        /// Value of the per-CPU array `service_drops`, whose index is [`crate::service::Service::id`].
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServiceDrops {
            $( #[doc = concat!("[`Verdict::", stringify!($variant), "`]")] pub $name: u64, )+
        }

        /// The verdicts that are counted for each service, in the order of their counters.
        pub const SERVICE_VERDICTS: &[Verdict] = &[$( Verdict::$variant, )+];

        impl ServiceDrops {
            /// The counter of `verdict`; `None` where it is not counted for each service.
            #[must_use]
            pub const fn get(&self, verdict: Verdict) -> Option<u64> {
                match verdict {
                    $( Verdict::$variant => Some(self.$name), )+
                    _ => None,
                }
            }

            /// The place of `verdict`'s counter, if it has one; else the number of counters.
            #[inline(always)]
            #[must_use]
            pub const fn place(verdict: Verdict) -> usize {
                match verdict {
                    $( Verdict::$variant => core::mem::offset_of!(Self, $name) / 8, )+
                    _ => SERVICE_VERDICTS.len(),
                }
            }

            /// Adds another CPU's counters to these.
            pub const fn add(&mut self, other: &Self) {
                $( self.$name = self.$name.wrapping_add(other.$name); )+
            }
        }
    };
}

service_verdicts! {
    NoFlow no_flow;
    NoBackend no_backend;
    BadTable bad_table;
    NoTuple no_tuple;
    FlowTableFull flow_table_full;
    NoRoute no_route;
    FragmentShort fragment_short;
    TtlExceeded ttl_exceeded;
    RewriteFailed rewrite_failed;
}

/// Number of verdicts.
pub const VERDICT_COUNT: usize = VERDICTS.len();

const _: () = assert!(size_of::<VerdictCounters>() == 8 * VERDICT_COUNT);
const _: () = assert!(size_of::<ServiceDrops>() == 8 * SERVICE_VERDICTS.len());

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker trait for plain old data is unsafe to implement")]
    use super::{ServiceDrops, VerdictCounters};
    // SAFETY: repr(C), nothing but u64 fields, every bit pattern valid.
    unsafe impl aya::Pod for VerdictCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ServiceDrops {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_table() {
        for (place, info) in VERDICTS.iter().enumerate() {
            assert_eq!(info.verdict as usize, place, "{}", info.name);
        }
    }

    #[test]
    fn each_verdict_that_drops_is_counted_for_its_service() {
        for info in VERDICTS {
            let counted = SERVICE_VERDICTS.contains(&info.verdict);
            if info.kind == VerdictKind::Dropped {
                assert!(counted, "{}", info.name);
            }
            assert_eq!(ServiceDrops::default().get(info.verdict).is_some(), counted);
            assert_eq!(ServiceDrops::place(info.verdict) < SERVICE_VERDICTS.len(), counted);
        }
    }
}
