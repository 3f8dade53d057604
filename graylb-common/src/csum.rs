//! Internet checksums (RFC 1071) and their incremental update (RFC 1624, equation 3).
//!
//! All sums are over 16-bit words as they lie in memory, without swapping bytes: one's-complement
//! addition commutes with byte order (RFC 1071, section 2 (B)), so results are stored as they come.

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The folded sum of four words as they lie in memory.
#[inline(always)]
#[must_use]
pub const fn words(words: [u32; 4]) -> u16 {
    let [a, b, c, d] = words;
    let low = (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff);
    fold(low + (a >> 16) + (b >> 16) + (c >> 16) + (d >> 16))
}

/// The one's-complement sum of two folded sums.
#[inline(always)]
#[must_use]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// `new - old` in one's complement.
#[inline(always)]
#[must_use]
pub const fn sub(new: u16, old: u16) -> u16 {
    add(new, !old)
}

/// The checksum field `check` after the bytes it covers have changed by `delta`.
#[inline(always)]
#[must_use]
pub const fn updated(check: u16, delta: u16) -> u16 {
    !add(!check, delta)
}

/// The folded sum of a byte string, an odd last byte padded with zero.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0;
    for word in bytes.chunks(2) {
        let word = [word[0], word.get(1).copied().unwrap_or(0)];
        total = add(total, u16::from_ne_bytes(word));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    extern crate std;

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn incremental_update_equals_summing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 40),
            new in any::<[u8; 8]>(),
        ) {
            bytes[39] |= 1; // a packet is never all zero
            let check = !sum(&bytes);
            let delta = sub(sum(&new), sum(&bytes[12..20]));
            bytes[12..20].copy_from_slice(&new);
            // Both zeros of one's complement mean the same sum.
            let anew = !sum(&bytes);
            prop_assert_eq!(add(updated(check, delta), !anew) , 0xffff);
        }
    }
}
