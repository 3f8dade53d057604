//! The far end of an IP-in-IP tunnel, for kernels without tunnel devices: what arrives in IPv4 or IPv6 is
//! taken out of its outer header and comes in again by a TUN device.

#![expect(unsafe_code, reason = "an ioctl makes a TUN device out of a file")]

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::UdpSocket,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::net::{AddressFamily, Protocol, SocketType};

use crate::namespace::Namespace;

/// IPv4 in another packet (RFC 2003), and IPv6 (RFC 2473).
const PROTOCOLS: [NonZeroU32; 2] = [NonZeroU32::new(4).unwrap(), NonZeroU32::new(41).unwrap()];
/// A thread looks this often whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// A running one. Dropped, it stops, and its device is gone.
#[derive(Debug)]
pub struct Decapsulator {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Decapsulator {
    /// The device that packets come in by.
    pub const DEVICE: &str = "graylb0";

    /// Starts one.
    ///
    /// # Panics
    ///
    /// The machine refuses.
    #[must_use]
    pub fn start(namespace: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let device = namespace.run(|| tun(Self::DEVICE)).expect("make a TUN device");
        namespace.ip(&format!("link set {} up", Self::DEVICE));
        let mut threads = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            for protocol in PROTOCOLS {
                let socket = namespace.run(|| raw(family, protocol)).expect("open a raw socket");
                let device = device.try_clone().expect("share a file");
                let stop = Arc::clone(&stop);
                // Raw IPv4 sockets are given the outer header, IPv6's are not (raw(7), ipv6(7)).
                let skip: fn(&[u8]) -> usize = match family {
                    AddressFamily::INET => |packet| usize::from(packet[0] & 15) * 4,
                    _ => |_| 0,
                };
                threads.push(thread::spawn(move || unpack(&socket, device, skip, &stop)));
            }
        }
        Self { stop, threads }
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn unpack(socket: &UdpSocket, mut device: File, skip: fn(&[u8]) -> usize, stop: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let packet = &buffer[..length];
        let _lost_like_on_a_wire = device.write_all(&packet[skip(packet)..]);
    }
}

/// A socket for everything of this protocol. std has none, but receives from any.
fn raw(family: AddressFamily, protocol: NonZeroU32) -> io::Result<UdpSocket> {
    let protocol = Some(Protocol::from_raw(protocol));
    let socket = UdpSocket::from(rustix::net::socket(family, SocketType::RAW, protocol)?);
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A TUN device in this thread's namespace. It is there as long as the file is open.
fn tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a struct of integers, arrays and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF takes an ifreq, which outlives the call; its name ends with a zero.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}
