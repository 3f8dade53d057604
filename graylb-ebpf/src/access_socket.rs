//! Socket access: the only place that touches the context of the socket hook's programs.
//!
//! Out: [`Socket`], whose far end is read and written in one form for both families. The kernel allows
//! loads and stores of whole words of the context at constant offsets, so each is one volatile access,
//! which the compiler neither joins nor splits.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use graylb_common::socket::SocketEndpoint;

/// A socket in a system call that names or shows its far end.
pub struct Socket<const IPV6: bool> {
    context: SockAddrContext,
}

/// The word before the IPv4 address in an IPv4-mapped one, in memory order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// Whether an address is an IPv4-mapped one (RFC 4291, 2.5.5.2).
#[inline(always)]
pub fn is_v4(endpoint: &SocketEndpoint) -> bool {
    let [a, b, c, _] = words(&endpoint.address);
    a | b == 0 && c == MAPPED
}

#[inline(always)]
const fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let value = u128::from_ne_bytes(*bytes);
    [value as u32, (value >> 32) as u32, (value >> 64) as u32, (value >> 96) as u32]
}

#[inline(always)]
const fn bytes(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words;
    (a as u128 | (b as u128) << 32 | (c as u128) << 64 | (d as u128) << 96).to_ne_bytes()
}

impl<const IPV6: bool> Socket<IPV6> {
    /// Wraps a program's context.
    #[inline(always)]
    pub const fn new(context: SockAddrContext) -> Self {
        Self { context }
    }

    /// The program's context.
    #[inline(always)]
    pub const fn context(&self) -> &SockAddrContext {
        &self.context
    }

    #[inline(always)]
    const fn fields(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    /// The socket's network namespace, as SO_NETNS_COOKIE numbers it.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context of this very program.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }

    /// The socket's number, as SO_COOKIE shows it.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_socket_cookie(self.context.as_ptr()) }
    }

    /// The transport protocol; `None` for one whose number no IP header has (MPTCP's is 262).
    #[inline(always)]
    pub fn protocol(&self) -> Option<u8> {
        // SAFETY: a word of the context, which is valid as long as the program runs.
        let protocol = unsafe { (&raw const (*self.fields()).protocol).read_volatile() };
        u8::try_from(protocol).ok()
    }

    /// The far end.
    #[inline(always)]
    pub fn endpoint(&self) -> SocketEndpoint {
        let fields = self.fields();
        // SAFETY: words of the context, valid as above; the IPv6 ones are read in IPv6's programs alone,
        // where the kernel allows it.
        let (address, port) = unsafe {
            let address = if IPV6 {
                let first = (&raw const (*fields).user_ip6).cast::<u32>();
                [
                    first.read_volatile(),
                    first.add(1).read_volatile(),
                    first.add(2).read_volatile(),
                    first.add(3).read_volatile(),
                ]
            } else {
                [0, 0, MAPPED, (&raw const (*fields).user_ip4).read_volatile()]
            };
            (address, (&raw const (*fields).user_port).read_volatile())
        };
        SocketEndpoint { address: bytes(address), port: u16::from_be(port as u16), reserved: 0 }
    }

    /// Makes `endpoint` the far end: where the system call goes, or what it shows. In IPv4's programs the
    /// endpoint is an IPv4-mapped one.
    #[inline(always)]
    pub fn set_endpoint(&self, endpoint: &SocketEndpoint) {
        let fields = self.fields();
        let [a, b, c, d] = words(&endpoint.address);
        // SAFETY: as in `endpoint`; the kernel allows stores to these words.
        unsafe {
            if IPV6 {
                let first = (&raw mut (*fields).user_ip6).cast::<u32>();
                first.write_volatile(a);
                first.add(1).write_volatile(b);
                first.add(2).write_volatile(c);
                first.add(3).write_volatile(d);
            } else {
                (&raw mut (*fields).user_ip4).write_volatile(d);
            }
            (&raw mut (*fields).user_port).write_volatile(u32::from(endpoint.port.to_be()));
        }
    }
}
