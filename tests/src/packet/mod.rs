//! The packet tier: single packets through the loaded programs (BPF_PROG_TEST_RUN), with what must come
//! out built from scratch and compared byte by byte.
//!
//! ```text
//! builder → wire        a packet as fields → its bytes, checksums summed in full
//! around                a frame's bytes → the tunnel packet, or the ICMP answer, that it becomes
//! topology, path        the interfaces, routes and neighbours around a program, and the ways through
//! lab, run, flows       the programs loaded as the agent loads them, one run, what is in the maps
//! case, exchange        tables of packets with what each must do, and their running
//! talk                  one client and a pool of another mode than nat
//! ```

pub mod around;
pub mod builder;
pub mod case;
mod checksum_complete;
pub mod describe;
mod exchange;
pub mod flows;
pub mod lab;
pub mod path;
pub mod run;
pub mod talk;
pub mod topology;
mod wire;
