//! The socket hook: clients on this host are sent to a backend when they name the virtual endpoint, so
//! that their packets need no rewriting, and are shown the virtual endpoint when they ask who they talk to.
//!
//! In: system calls of processes of one network namespace. What it cannot steer it leaves alone, for the
//! packet path to decide: a service without a backend in force, a pool in a mode that is about packets.
//! It never makes a system call fail.

use aya_ebpf::programs::{SockAddrContext, SockContext};
use graylb_common::{
    backend::{FAMILY_V4, FAMILY_V6, MODE_NAT},
    service::{PROTOCOL_UDP, Service, ServiceKey},
    socket::{
        FROM_BACKEND, STEERED_CONNECTED, STEERED_PAIRS, SocketEndpoint, SocketKey, SocketPair,
        Steered, TO_BACKEND,
    },
};

use crate::{
    access::now_ns,
    access_socket::{Socket, is_v4},
    count,
    family::{Family, KeyOf, V4, V6},
    maps,
    maps_socket::{self, Kept, Pair},
    select::{self, Choice},
    split,
};

/// The system call goes on.
const GO_ON: i32 = 1;

/// A socket is connected.
#[inline(always)]
pub fn connect<const IPV6: bool>(context: SockAddrContext) -> i32 {
    let socket = Socket::<IPV6>::new(context);
    let Some(epoch) = epoch_if_ours(&socket) else { return GO_ON };
    let asked = socket.endpoint();
    let kept = maps_socket::kept(&socket);
    if let Some(kept) = &kept {
        // Connected before: a UDP socket to another endpoint, or one whose connection failed.
        disconnect(kept, epoch);
    }
    let choice = socket.protocol().and_then(|protocol| {
        if is_v4(&asked) {
            choose::<V4, IPV6>(&socket, &asked, service::<V4>(&asked, protocol)?)
        } else {
            choose::<V6, IPV6>(&socket, &asked, service::<V6>(&asked, protocol)?)
        }
    });
    if let Some(choice) = choice {
        let backend = endpoint(&choice);
        if let Some(kept) = kept.or_else(|| maps_socket::keep(&socket)) {
            let state = kept.value().state | STEERED_CONNECTED;
            kept.set(&Steered { asked, backend, index: choice.index, epoch, state });
            maps_socket::add_active(choice.index, 1);
        }
        socket.set_endpoint(&backend);
        count::socket_opened(choice.index);
        count::socket_steered();
    }
    GO_ON
}

/// An unconnected UDP socket sends a datagram.
#[inline(always)]
pub fn send<const IPV6: bool>(context: SockAddrContext) -> i32 {
    let socket = Socket::<IPV6>::new(context);
    if epoch_if_ours(&socket).is_some() && socket.protocol() == Some(PROTOCOL_UDP) {
        let asked = socket.endpoint();
        // The kernel brings datagrams to an IPv4-mapped address here as IPv4 ones.
        let backend = if IPV6 {
            pinned::<V6, IPV6>(&socket, &asked)
        } else {
            pinned::<V4, IPV6>(&socket, &asked)
        };
        if let Some(backend) = backend {
            socket.set_endpoint(&backend);
            count::socket_steered();
        }
    }
    GO_ON
}

/// A UDP socket is told where a datagram came from.
#[inline(always)]
pub fn receive<const IPV6: bool>(context: SockAddrContext) -> i32 {
    let socket = Socket::<IPV6>::new(context);
    if let Some(kept) = maps_socket::kept(&socket) {
        let source = socket.endpoint();
        if let Some(asked) = asked_for(&kept, &source) {
            socket.set_endpoint(&asked);
        } else if kept.value().state & STEERED_PAIRS != 0 {
            let cookie = socket.cookie();
            let key = SocketKey { cookie, endpoint: source, direction: FROM_BACKEND };
            if let Some(pair) = maps_socket::pair(&key) {
                pair.touch(now_ns());
                socket.set_endpoint(&pair.value().peer);
            }
        }
    }
    GO_ON
}

/// A client asks whom its socket is connected to.
#[inline(always)]
pub fn show_peer<const IPV6: bool>(context: SockAddrContext) -> i32 {
    let socket = Socket::<IPV6>::new(context);
    if let Some(kept) = maps_socket::kept(&socket)
        && let Some(asked) = asked_for(&kept, &socket.endpoint())
    {
        socket.set_endpoint(&asked);
    }
    GO_ON
}

/// A socket ends.
#[inline(always)]
pub fn end(context: &SockContext) -> i32 {
    if let Some(kept) = maps_socket::kept_at_end(context)
        && let Some(settings) = maps_socket::settings()
    {
        disconnect(&kept, settings.epoch);
    }
    GO_ON
}

/// The epoch, if the socket is of the network namespace that the hook is for.
#[inline(always)]
fn epoch_if_ours<const IPV6: bool>(socket: &Socket<IPV6>) -> Option<u32> {
    let settings = maps_socket::settings()?;
    (settings.netns_cookie == socket.netns_cookie()).then_some(settings.epoch)
}

/// The endpoint that a connected socket's client asked for, if `actual` is the backend it was given.
#[inline(always)]
fn asked_for(kept: &Kept, actual: &SocketEndpoint) -> Option<SocketEndpoint> {
    let steered = kept.value();
    (steered.state & STEERED_CONNECTED != 0 && steered.backend == *actual).then_some(steered.asked)
}

#[inline(always)]
fn disconnect(kept: &Kept, epoch: u32) {
    let Steered { state, index, epoch: counted_in, .. } = *kept.value();
    if state & STEERED_CONNECTED != 0 {
        kept.set_state(state & !STEERED_CONNECTED);
        if counted_in == epoch {
            maps_socket::add_active(index, -1);
        }
    }
}

/// The service at an endpoint.
#[inline(always)]
fn service<Fam: Family>(asked: &SocketEndpoint, protocol: u8) -> Option<&'static Service> {
    let address = *Fam::address(&asked.address, family::<Fam>())?;
    let key = ServiceKey { address, port: asked.port, protocol, reserved: 0 };
    maps::service(Fam::services(), &key)
}

/// Chooses a backend for a socket, which need have neither address nor port yet: its number stands for the
/// port, and all clients on this host are one, at the service's own address.
#[inline(always)]
fn choose<Fam: Family, const IPV6: bool>(
    socket: &Socket<IPV6>,
    asked: &SocketEndpoint,
    service: &Service,
) -> Option<Choice> {
    let address = *Fam::address(&asked.address, family::<Fam>())?;
    let key = KeyOf::<Fam> {
        source: address,
        destination: address,
        source_port: socket.cookie() as u16,
        destination_port: asked.port,
    };
    let route = split::route::<Fam>(&key, service)?;
    if route.slots_count == 0 {
        return None;
    }
    // Whether the pool is one for sockets, before a turn is taken, which would be lost. A pool has one mode.
    let backend = maps::backend(maps::slot(route.slots_start)?.backend)?;
    if backend.mode != MODE_NAT || backend.family != family::<Fam>() {
        return None;
    }
    select::on_route::<Fam>(&key, service, route).ok()
}

#[inline(always)]
const fn family<Fam: Family>() -> u8 {
    if Fam::IPV6 { FAMILY_V6 } else { FAMILY_V4 }
}

#[inline(always)]
const fn endpoint(choice: &Choice) -> SocketEndpoint {
    SocketEndpoint { address: choice.backend.address, port: choice.backend.port, reserved: 0 }
}

/// The backend of the pair that a socket and a virtual endpoint are, a new one if there is none.
///
/// The service is looked up first, so that datagrams to others cost one look-up; a service that is gone
/// takes its pairs with it.
#[inline(always)]
fn pinned<Fam: Family, const IPV6: bool>(
    socket: &Socket<IPV6>,
    asked: &SocketEndpoint,
) -> Option<SocketEndpoint> {
    let service = service::<Fam>(asked, PROTOCOL_UDP)?;
    let now = now_ns();
    let cookie = socket.cookie();
    let key = SocketKey { cookie, endpoint: *asked, direction: TO_BACKEND };
    if let Some(pair) = maps_socket::pair(&key)
        && !expired(cookie, &pair, now)
    {
        pair.touch(now);
        return Some(pair.value().peer);
    }
    let choice = choose::<Fam, IPV6>(socket, asked, service)?;
    let backend = endpoint(&choice);
    let reply_key = SocketKey { cookie, endpoint: backend, direction: FROM_BACKEND };
    if let Some(other) = maps_socket::pair(&reply_key)
        && other.value().peer != *asked
        && !idle(other.value().last_seen_ns, now)
    {
        // The socket talks to this backend through another virtual endpoint: replies could not be told
        // apart, which they can where packets are rewritten.
        return None;
    }
    let kept = maps_socket::keep(socket)?;
    kept.set_state(kept.value().state | STEERED_PAIRS);
    let pair = |peer| SocketPair { last_seen_ns: now, peer, backend: choice.index };
    if !maps_socket::put_pair(&reply_key, &pair(*asked))
        || !maps_socket::put_pair(&key, &pair(backend))
    {
        return None;
    }
    count::socket_opened(choice.index);
    Some(backend)
}

/// Whether nothing has gone either way for the timeout.
#[inline(always)]
fn expired(cookie: u64, pair: &Pair, now_ns: u64) -> bool {
    if !idle(pair.value().last_seen_ns, now_ns) {
        return false;
    }
    let endpoint = pair.value().peer;
    let reply_key = SocketKey { cookie, endpoint, direction: FROM_BACKEND };
    maps_socket::pair(&reply_key).is_none_or(|reply| idle(reply.value().last_seen_ns, now_ns))
}

#[inline(always)]
fn idle(seen_ns: u64, now_ns: u64) -> bool {
    maps::settings()
        .is_some_and(|settings| now_ns.saturating_sub(seen_ns) > settings.udp_timeout_ns)
}
