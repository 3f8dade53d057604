//! Names of maps and programs, as they are pinned and as bpftool lists them (at most 15 characters, the
//! kernel's BPF_OBJ_NAME_LEN less one).

/// Virtual endpoints → generation in force: `ServiceKey` → `Service`.
pub const SERVICES_V4: &str = "services_v4";
/// The same for IPv6.
pub const SERVICES_V6: &str = "services_v6";
/// Virtual addresses: `AddressKey` → `Address`.
pub const ADDRESSES_V4: &str = "addresses_v4";
/// The same for IPv6.
pub const ADDRESSES_V6: &str = "addresses_v6";
/// All services' routes in one flat array of `Route`.
pub const ROUTES: &str = "routes";
/// Client rules: prefixes of `RuleKey` → `Rule`.
pub const RULES_V4: &str = "rules_v4";
/// The same for IPv6.
pub const RULES_V6: &str = "rules_v6";
/// All services' slots in one flat array of `Slot`.
pub const SLOTS: &str = "slots";
/// Round-robin counters: array of `Turn`.
pub const TURNS: &str = "turns";
/// Array of `Backend`.
pub const BACKENDS: &str = "backends";
/// Per-CPU array of `BackendCounters`.
pub const BACKEND_STATS: &str = "backend_stats";
/// Array of `Active`.
pub const ACTIVE: &str = "active";
/// Array of `Source`.
pub const SOURCES: &str = "sources";
/// Established TCP flows: `FlowKey` → `Flow`.
pub const TCP_V4: &str = "tcp_v4";
/// The same for IPv6.
pub const TCP_V6: &str = "tcp_v6";
/// TCP flows in their handshake: `FlowKey` → `HalfOpen`.
pub const HALF_OPEN_V4: &str = "half_open_v4";
/// The same for IPv6.
pub const HALF_OPEN_V6: &str = "half_open_v6";
/// UDP flows: `FlowKey` → `Flow`.
pub const UDP_V4: &str = "udp_v4";
/// The same for IPv6.
pub const UDP_V6: &str = "udp_v6";
/// One element, per CPU: `VerdictCounters`.
pub const VERDICTS: &str = "verdicts";
/// Per-CPU array of `ServiceDrops`, by the service's number.
pub const SERVICE_DROPS: &str = "service_drops";
/// One element: `Settings`.
pub const SETTINGS: &str = "settings";
/// Storage at sockets that the socket hook steers: `Steered`.
pub const SOCKETS: &str = "sockets";
/// Endpoints that unconnected UDP sockets talk to: `SocketKey` → `SocketPair`.
pub const SOCKET_PAIRS: &str = "socket_pairs";
/// Array of `Active`, same index as `backends`: connected sockets that the socket hook steered.
pub const SOCKET_ACTIVE: &str = "socket_active";
/// One element: `SocketSettings`.
pub const SOCKET_SETTINGS: &str = "socket_settings";

/// Every pinned map.
pub const ALL: [&str; 26] = [
    SERVICES_V4,
    SERVICES_V6,
    ADDRESSES_V4,
    ADDRESSES_V6,
    ROUTES,
    RULES_V4,
    RULES_V6,
    SLOTS,
    TURNS,
    BACKENDS,
    BACKEND_STATS,
    ACTIVE,
    SOURCES,
    TCP_V4,
    TCP_V6,
    HALF_OPEN_V4,
    HALF_OPEN_V6,
    UDP_V4,
    UDP_V6,
    VERDICTS,
    SERVICE_DROPS,
    SETTINGS,
    SOCKETS,
    SOCKET_PAIRS,
    SOCKET_ACTIVE,
    SOCKET_SETTINGS,
];

/// The program on the way in, for TC.
pub const PROGRAM_TC_IN: &str = "graylb_tc_in";
/// The program on the way out, for TC: replies of backends on this host.
pub const PROGRAM_TC_OUT: &str = "graylb_tc_out";
/// The program on the way in, for XDP.
pub const PROGRAM_XDP: &str = "graylb_xdp";

/// Every program on the packet path.
pub const PROGRAMS: [&str; 3] = [PROGRAM_TC_IN, PROGRAM_TC_OUT, PROGRAM_XDP];

/// Programs of the socket hook, in the order in which they are attached: what shows a steered socket's
/// client the endpoint that it asked for comes before what steers.
pub const SOCKET_PROGRAMS: [&str; 9] = [
    "graylb_sockend",
    "graylb_getpeer4",
    "graylb_getpeer6",
    "graylb_recvmsg4",
    "graylb_recvmsg6",
    "graylb_connect4",
    "graylb_connect6",
    "graylb_sendmsg4",
    "graylb_sendmsg6",
];

/// Default services per family that fit.
pub const DEFAULT_SERVICES: u32 = 4096;
/// Default slots of all services together that fit.
pub const DEFAULT_SLOTS: u32 = 1 << 18;
/// Default backends (service × pool × backend) that fit.
pub const DEFAULT_BACKENDS: u32 = 1 << 14;
/// Default source addresses of all pools together that fit.
pub const DEFAULT_SOURCES: u32 = 1 << 12;
/// Numbers of services ([`crate::service::Service::id`]) for each service per family: one per family.
pub const IDS_PER_SERVICE: u32 = 2;
/// Default routes of all services together that fit, and as many round-robin counters.
pub const DEFAULT_ROUTES: u32 = 1 << 15;
/// Default client rules of all services of a family together that fit.
pub const DEFAULT_RULES: u32 = 1 << 16;

/// Entries of `socket_pairs`; two entries make a pair.
pub const MAX_SOCKET_PAIRS: u32 = 1 << 15;

/// Read-only global of the programs: flag bits that `bpf_l4_csum_replace` takes for IPv6 on the running
/// kernel (`BPF_F_IPV6` since 6.16, else 0), a `u64`.
pub const GLOBAL_CSUM_IPV6_FLAG: &str = "CSUM_IPV6_FLAG";
/// Read-only global of the programs: whether fragments are followed (else 0), a `u32`. Where they are not, the
/// verifier does not look at what would follow them.
pub const GLOBAL_FOLLOW_FRAGMENTS: &str = "FOLLOW_FRAGMENTS";
/// Default entries of `tcp_v4` and `tcp_v6`; two entries make a flow.
pub const DEFAULT_TCP_ENTRIES: u32 = 1 << 18;
/// Default entries of `half_open_v4` and `half_open_v6`.
pub const DEFAULT_HALF_OPEN_ENTRIES: u32 = 1 << 16;
/// Default entries of `udp_v4` and `udp_v6`.
pub const DEFAULT_UDP_ENTRIES: u32 = 1 << 16;
