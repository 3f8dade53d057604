//! graylb's packet path: three programs over one pipeline.
//!
//! ```text
//! frame → parse → classify (→ select) → rewrite → emit
//! ```
//!
//! Entry points only; [`pipeline`] has the choreography.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod answer;
mod balance;
mod classify;
mod count;
mod emit;
mod family;
mod icmp;
mod maps;
mod parse;
mod pipeline;
mod rewrite;
mod select;
mod tcp;
mod tunnel;
mod udp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
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

/// The licence that the kernel checks before it lets a program use its GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
