//! What a byte may begin, and where runs of bytes end, without a branch on the length for each byte.
//!
//! The classes are those of Postgres's scanner (`scan.l`): bytes past ASCII are letters. Used by the
//! lexer's loop alone.

/// What a byte may begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Other,
    Space,
    Ident,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Dash,
    Slash,
    Dot,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0c => Class::Space,
            b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80..=0xff => Class::Ident,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'-' => Class::Dash,
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            _ => Class::Other,
        };
        b += 1;
    }
    table
};

#[inline]
pub(super) fn class(b: u8) -> Class {
    CLASS[usize::from(b)]
}

/// What goes on in a name, once it has begun.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = matches!(CLASS[b], Class::Ident | Class::Digit | Class::Dollar);
        b += 1;
    }
    table
};

#[inline]
pub(super) fn is_ident(b: u8) -> bool {
    IN_NAME[usize::from(b)]
}

/// Where the bytes from `at` on end that satisfy `is`. Eight at a time, of which it is known that
/// they are there.
#[inline]
pub(super) fn run_end(bytes: &[u8], mut at: usize, is: impl Fn(u8) -> bool) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        for (n, byte) in chunk.iter().enumerate() {
            if !is(*byte) {
                return at + n;
            }
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| is(*byte)) {
        at += 1;
    }
    at
}

/// Where `needle` first stands in `hay`, eight bytes a step.
#[inline]
pub(super) fn find_byte(hay: &[u8], needle: u8) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let (chunks, tail) = hay.as_chunks::<8>();
    for (n, chunk) in chunks.iter().enumerate() {
        // Zero where the needle is. The lowest of the bits that the subtraction leaves is exact.
        let zero = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(needle));
        let found = zero.wrapping_sub(ONES) & !zero & TOPS;
        if found != 0 {
            return Some(8 * n + found.trailing_zeros() as usize / 8);
        }
    }
    let at = tail.iter().position(|byte| *byte == needle)?;
    Some(8 * chunks.len() + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_and_finds_as_byte_by_byte(
            bytes in prop::collection::vec(prop::sample::select(b"a'&(\x00\x01\xa7\x80".to_vec()), 0..40),
            needle in prop::sample::select(b"a'\x00\x01\x80z".to_vec()),
        ) {
            let position = bytes.iter().position(|byte| *byte == needle);
            prop_assert_eq!(find_byte(&bytes, needle), position);
            for from in 0..=bytes.len() {
                let run = bytes[from..].iter().take_while(|byte| **byte != needle).count();
                prop_assert_eq!(run_end(&bytes, from, |byte| byte != needle), from + run);
            }
        }
    }
}
