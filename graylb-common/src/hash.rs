//! The hash by which clients find their slot: MurmurHash3 (Austin Appleby, `MurmurHash3_x86_32`), over whole
//! 32-bit words. The packet path and the agent compute it alike, and so do all agents of a group, whatever
//! their byte order: words are little-endian.
//!
//! In: a salt that differs from service to service, and what is hashed. Out: 32 even bits, and
//! [`place`] for a place in a table. It is no protection against clients who choose their ports so as to
//! meet on one backend: whoever knows the service's endpoint can compute it.

use murmur::{Absorb, Murmur3};

use crate::service::SHARES;

/// The hash of words.
#[must_use]
pub const fn words(seed: u32, words: &[u32]) -> u32 {
    let mut hash = Murmur3::new(seed);
    let mut rest = words;
    while let [first, others @ ..] = rest {
        hash = hash.word(*first);
        rest = others;
    }
    hash.finish()
}

/// Out of reach, so that [`Address`] is sealed: the two families are all there are.
mod murmur {
    /// A hash in the making.
    #[derive(Clone, Copy)]
    pub struct Murmur3 {
        state: u32,
        /// Bytes taken in.
        length: u32,
    }

    impl Murmur3 {
        #[inline(always)]
        pub const fn new(seed: u32) -> Self {
            Self { state: seed, length: 0 }
        }

        #[inline(always)]
        pub const fn word(self, word: u32) -> Self {
            let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
            let state = (self.state ^ word).rotate_left(13).wrapping_mul(5);
            Self { state: state.wrapping_add(0xe654_6b64), length: self.length + 4 }
        }

        #[inline(always)]
        pub const fn finish(self) -> u32 {
            let mut hash = self.state ^ self.length;
            hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
            hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
            hash ^ (hash >> 16)
        }
    }

    /// What can be taken into a hash.
    pub trait Absorb {
        /// Takes the first `prefix` bits in; those behind count as zero.
        fn absorb(&self, hash: Murmur3, prefix: u8) -> Murmur3;
    }
}

/// An IP address, in network order: `[u8; 4]` or `[u8; 16]`.
pub trait Address: Absorb {
    /// Bits of an address.
    const BITS: u8;
}

impl Address for [u8; 4] {
    const BITS: u8 = 32;
}

impl Address for [u8; 16] {
    const BITS: u8 = 128;
}

impl Absorb for [u8; 4] {
    #[inline(always)]
    fn absorb(&self, hash: Murmur3, prefix: u8) -> Murmur3 {
        hash.word(u32::from_le_bytes(*self) & mask(prefix, 0))
    }
}

impl Absorb for [u8; 16] {
    #[inline(always)]
    fn absorb(&self, hash: Murmur3, prefix: u8) -> Murmur3 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        hash.word(u32::from_le_bytes([a, b, c, d]) & mask(prefix, 0))
            .word(u32::from_le_bytes([e, f, g, h]) & mask(prefix, 32))
            .word(u32::from_le_bytes([i, j, k, l]) & mask(prefix, 64))
            .word(u32::from_le_bytes([m, n, o, p]) & mask(prefix, 96))
    }
}

/// The mask of the word that starts at bit `start` of an address of which the first `prefix` bits count, for
/// the word in little-endian order. Straight-line code: shifts by 0 to 32 bits of a 64-bit value.
#[inline(always)]
const fn mask(prefix: u8, start: u8) -> u32 {
    let bits = prefix.saturating_sub(start);
    let bits = if bits < 32 { bits } else { 32 };
    let behind = (0xffff_ffff_u64 >> bits) as u32;
    (!behind).swap_bytes()
}

/// The hash of a client's address, of which the first `prefix` bits count: clients alike in these bits hash
/// alike. A prefix longer than the address is the whole address.
#[inline(always)]
#[must_use]
pub fn client<A: Address>(salt: u32, address: &A, prefix: u8) -> u32 {
    address.absorb(Murmur3::new(salt), prefix).finish()
}

/// The hash of a packet's tuple. The salt stands for the service's address, port and protocol, of which it is
/// made ([`crate::service::Service::salt`]), so with the client's side it is a hash of all five.
#[inline(always)]
#[must_use]
pub fn tuple<A: Address>(salt: u32, source: &A, source_port: u16) -> u32 {
    source.absorb(Murmur3::new(salt), A::BITS).word(source_port as u32).finish()
}

/// The place of a hash in a table of `count` entries: `hash × count / 2³²`, which needs no division and is
/// below `count` (0 where that is 0). Each place has the same part of all hashes, to within count/2³².
#[inline(always)]
#[must_use]
pub const fn place(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// The bucket of a client, below [`SHARES`]: those below the share are the canary's. `port` sets flows of one
/// client apart, where that is wanted.
#[inline(always)]
#[must_use]
pub fn bucket<A: Address>(salt: u32, address: &A, prefix: u8, port: Option<u16>) -> u32 {
    let hash = match port {
        Some(port) => tuple(salt, address, port),
        None => client(salt, address, prefix),
    };
    place(hash, SHARES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    extern crate std;

    /// Vectors that any implementation of the 32-bit variant gives for whole words (bytes shown).
    #[test]
    fn it_is_murmur3() {
        assert_eq!(words(0, &[]), 0);
        assert_eq!(words(1, &[]), 0x514e_28b7);
        assert_eq!(words(0xffff_ffff, &[]), 0x81f1_6f39);
        // ff ff ff ff
        assert_eq!(words(0, &[0xffff_ffff]), 0x7629_3b50);
        // 21 43 65 87
        assert_eq!(words(0, &[0x8765_4321]), 0xf55b_516b);
        assert_eq!(words(0x5082_edee, &[0x8765_4321]), 0x2362_f9de);
        // 00 00 00 00
        assert_eq!(words(0, &[0]), 0x2362_f9de);
        // "aaaa" and "test" with the seed of the reference's own tests
        assert_eq!(words(0x9747_b28c, &[u32::from_le_bytes(*b"aaaa")]), 0x5a97_808a);
        assert_eq!(words(0x9747_b28c, &[u32::from_le_bytes(*b"test")]), 0x704b_81dc);
    }

    #[test]
    fn a_whole_address_is_its_words() {
        let address = [192, 0, 2, 1];
        assert_eq!(client(7, &address, 32), words(7, &[u32::from_le_bytes(address)]));
        assert_eq!(
            tuple(7, &address, 0x1234),
            words(7, &[u32::from_le_bytes(address), 0x1234]),
            "the port in host order"
        );
    }

    #[test]
    fn masks_keep_the_first_bits() {
        let kept = |prefix, start| mask(prefix, start).to_le_bytes();
        assert_eq!(kept(0, 0), [0, 0, 0, 0]);
        assert_eq!(kept(1, 0), [0x80, 0, 0, 0]);
        assert_eq!(kept(20, 0), [0xff, 0xff, 0xf0, 0]);
        assert_eq!(kept(32, 0), [0xff; 4]);
        assert_eq!(kept(255, 96), [0xff; 4]);
        assert_eq!(kept(64, 64), [0; 4]);
        assert_eq!(kept(65, 64), [0x80, 0, 0, 0]);
    }

    #[test]
    fn a_place_is_below_the_count() {
        assert_eq!(place(u32::MAX, 0), 0);
        assert_eq!(place(u32::MAX, 1), 0);
        assert_eq!(place(u32::MAX, 4099), 4098);
        assert_eq!(place(0, 4099), 0);
    }

    proptest! {
        #[test]
        fn clients_alike_in_their_prefix_hash_alike(
            salt: u32,
            a in any::<u128>(),
            b in any::<u128>(),
            prefix in 0..=128_u8,
        ) {
            let behind = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let sibling = (a & !behind) | (b & behind);
            let hash = |address: u128| client(salt, &address.to_be_bytes(), prefix);
            prop_assert_eq!(hash(a), hash(sibling));
            if prefix > 0 {
                // The last bit that counts does count.
                let neighbour = a ^ (1 << (128 - u32::from(prefix)));
                prop_assert_ne!(hash(a), hash(neighbour));
            }
        }

        #[test]
        fn prefixes_of_ipv4_too(salt: u32, a: u32, b: u32, prefix in 1..=32_u8) {
            let behind = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let hash = |address: u32| client(salt, &address.to_be_bytes(), prefix);
            prop_assert_eq!(hash(a), hash((a & !behind) | (b & behind)));
            prop_assert_ne!(hash(a), hash(a ^ (1 << (32 - u32::from(prefix)))));
        }

        #[test]
        fn places_are_in_the_table(hash: u32, count in 1_u32..100_000) {
            prop_assert!(place(hash, count) < count);
        }
    }
}
