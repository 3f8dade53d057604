//! graylb's packet path, three programs over one pipeline, and the socket hook for clients on this host.
//!
//! ```text
//! frame → parse → classify (→ select) → rewrite → emit
//! ```
//!
//! Entry points only; [`pipeline`] has the choreography, [`socket`] the hook.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod access_socket;
mod answer;
mod balance;
mod classify;
mod count;
mod echo;
mod emit;
mod family;
mod fragment;
mod icmp;
mod maps;
mod maps_socket;
mod parse;
mod pipeline;
mod rewrite;
mod select;
mod socket;
mod split;
mod tcp;
mod tunnel;
mod udp;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};

use crate::{
    access::{TcFrame, XdpFrame},
    pipeline::{In, Out},
};

/// TC, packets on their way in.
#[classifier]
pub fn graylb_tc_in(context: TcContext) -> i32 {
    pipeline::run::<In, _>(&mut TcFrame::new(context))
}

/// TC, packets on their way out: replies of backends on this host.
#[classifier]
pub fn graylb_tc_out(context: TcContext) -> i32 {
    pipeline::run::<Out, _>(&mut TcFrame::new(context))
}

/// XDP, packets on their way in.
#[xdp]
pub fn graylb_xdp(context: XdpContext) -> u32 {
    pipeline::run::<In, _>(&mut XdpFrame::new(context)).cast_unsigned()
}

/// A socket of this host ends.
#[cgroup_sock(sock_release)]
pub fn graylb_sockend(context: SockContext) -> i32 {
    socket::end(&context)
}

macro_rules! socket_hook {
    ($( $doc:literal $hook:ident $program:ident : $run:path; )+) => {
        $(
            #[doc = $doc]
            #[cgroup_sock_addr($hook)]
            pub fn $program(context: SockAddrContext) -> i32 {
                $run(context)
            }
        )+
    };
}

socket_hook! {
    "A client on this host connects, IPv4." connect4 graylb_connect4: socket::connect::<false>;
    "The same, IPv6." connect6 graylb_connect6: socket::connect::<true>;
    "It sends a datagram, IPv4." sendmsg4 graylb_sendmsg4: socket::send::<false>;
    "The same, IPv6." sendmsg6 graylb_sendmsg6: socket::send::<true>;
    "It receives a datagram, IPv4." recvmsg4 graylb_recvmsg4: socket::receive::<false>;
    "The same, IPv6." recvmsg6 graylb_recvmsg6: socket::receive::<true>;
    "It asks whom it talks to, IPv4." getpeername4 graylb_getpeer4: socket::show_peer::<false>;
    "The same, IPv6." getpeername6 graylb_getpeer6: socket::show_peer::<true>;
}

/// The licence that the kernel checks before it lets a program use its GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
