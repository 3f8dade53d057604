//! Large transfers: a stream that both ends can make, and its hash.
//!
//! A connection opens with [`MAGIC`], the direction and the length in bytes. Down: the server sends the
//! stream. Up: the client sends it, and the server answers with the hash of what came.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use xxhash_rust::xxh3::Xxh3;

/// First byte of a transfer; no HTTP method begins with it.
pub const MAGIC: u8 = 0xf7;
/// Bytes that are made, sent and hashed at once.
const BLOCK: usize = 1 << 18;
/// The number of its block stands in each stretch of this many bytes, so that no two segments are alike.
const STRETCH: usize = 1 << 10;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the client.
    Down,
    /// To the server.
    Up,
}

/// The server's side.
pub(crate) fn serve(input: &mut impl Read, mut output: &TcpStream) -> io::Result<()> {
    let mut head = [0; 10];
    input.read_exact(&mut head)?;
    let [_magic, direction, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    if direction == Direction::Down as u8 {
        send(&mut output, length)?;
        return Ok(());
    }
    let hash = receive(input, length)?;
    output.write_all(&hash.to_le_bytes())
}

/// Moves `length` bytes over a new connection; returns the hash of what was sent and of what came.
///
/// # Errors
///
/// The connection fails or ends early.
pub fn transfer(stream: &TcpStream, direction: Direction, length: u64) -> io::Result<(u128, u128)> {
    let mut stream = stream;
    let mut head = vec![MAGIC, direction as u8];
    head.extend(length.to_le_bytes());
    stream.write_all(&head)?;
    if direction == Direction::Down {
        let came = receive(&mut stream, length)?;
        return Ok((send(&mut io::sink(), length)?, came));
    }
    let sent = send(&mut stream, length)?;
    let mut hash = [0; 16];
    stream.read_exact(&mut hash)?;
    Ok((sent, u128::from_le_bytes(hash)))
}

/// Sends the stream, and returns its hash.
fn send(output: &mut impl Write, length: u64) -> io::Result<u128> {
    let mut block = noise();
    let mut hash = Xxh3::new();
    let mut left = length;
    for number in 0_u64.. {
        if left == 0 {
            break;
        }
        for stretch in block.chunks_exact_mut(STRETCH) {
            stretch[..8].copy_from_slice(&number.to_le_bytes());
        }
        let part = &block[..usize::try_from(left).unwrap_or(BLOCK).min(BLOCK)];
        hash.update(part);
        output.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(hash.digest128())
}

/// Receives a stream, and returns its hash.
fn receive(input: &mut impl Read, length: u64) -> io::Result<u128> {
    let mut block = vec![0; BLOCK];
    let mut hash = Xxh3::new();
    let mut left = length;
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        let read = input.read(&mut block[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&block[..read]);
        left -= read as u64;
    }
    Ok(hash.digest128())
}

/// A block of bytes without a pattern that a checksum could miss (xorshift64, Marsaglia 2003).
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    block
}
