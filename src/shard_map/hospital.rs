//! Hospital ids, read exactly as Postgres reads its uuid type.
//!
//! Whatever this accepts and Postgres doesn't would be routed and then fail; whatever Postgres
//! accepts and this doesn't would be refused for a spelling; and a text that both accept but
//! read differently would reach another hospital's shard. So the rule is that of
//! `string_to_uuid` in Postgres's uuid.c, character by character.

use uuid::Uuid;

/// A hospital's id: the tenant, and the key of every sharded table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HospitalId(pub Uuid);

impl std::hash::Hash for HospitalId {
    /// As one integer: half the work of sixteen bytes with their length.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.0.as_u128());
    }
}

impl std::fmt::Display for HospitalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl HospitalId {
    /// Reads the spellings of Postgres's uuid input: 32 hexadecimal digits in either case, one
    /// hyphen allowed after each four but the last, matching braces, nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        match text.as_bytes().try_into().ok().and_then(canonical) {
            Some(id) => Some(Self(Uuid::from_bytes(id))),
            None => Self::parse_any(text),
        }
    }

    fn parse_any(text: &str) -> Option<Self> {
        let (mut rest, end): (&[u8], &[u8]) = match text.as_bytes() {
            [b'{', rest @ ..] => (rest, b"}"),
            rest => (rest, b""),
        };
        let mut id = 0_u128;
        for byte in 0..16 {
            let [high, low, tail @ ..] = rest else { return None };
            id = id << 8 | u128::from(hex(*high)?) << 4 | u128::from(hex(*low)?);
            rest = match tail {
                [b'-', tail @ ..] if byte % 2 == 1 && byte < 15 => tail,
                _ => tail,
            };
        }
        (rest == end).then_some(Self(Uuid::from_u128(id)))
    }

    /// Reads the 16-byte binary form.
    pub fn from_binary(bytes: &[u8]) -> Option<Self> {
        Some(Self(Uuid::from_bytes(bytes.try_into().ok()?)))
    }
}

/// Length of `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
const CANONICAL_BYTES: usize = 36;
/// Where the digits of each byte stand in it.
const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// Reads the form that nearly everybody sends; `None` says only that the text is not of that form.
/// Every digit is looked at before the answer: no branch depends on a single one.
fn canonical(text: &[u8; CANONICAL_BYTES]) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    let mut all = 0;
    for (byte, place) in id.iter_mut().zip(PLACES) {
        let (high, low) = (HEX[usize::from(text[place])], HEX[usize::from(text[place + 1])]);
        all |= high | low;
        *byte = high << 4 | low;
    }
    (all < NO_DIGIT && HYPHENS.iter().all(|at| text[*at] == b'-')).then_some(id)
}

fn hex(digit: u8) -> Option<u8> {
    Some(HEX[usize::from(digit)]).filter(|value| *value < NO_DIGIT)
}

/// In [`HEX`]: more than any digit's value, and still so after `|` with others.
const NO_DIGIT: u8 = 0xF0;

/// The value of each hexadecimal digit.
const HEX: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: u128 = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11;

    #[test]
    fn reads_the_spellings_of_postgres() {
        let good = [
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
            "{A0eebc999c0b4ef8bb6d6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd38-0a11",
        ];
        for text in good {
            assert_eq!(HospitalId::parse(text), Some(HospitalId(Uuid::from_u128(ID))), "{text}");
        }
        let bad = [
            "",
            "{}",
            "{",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a111",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1-1",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-",
            "-a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99--9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0e-ebc999c0b4ef8bb6d6bb9bd380a11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "{{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}}",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-}",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11} ",
            " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11 ",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\0",
            "urn:uuid:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "0xeebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "+0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a１",
            "(a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11)",
        ];
        for text in bad {
            assert_eq!(HospitalId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn reads_sixteen_bytes_and_no_other_number() {
        let bytes = ID.to_be_bytes();
        assert_eq!(HospitalId::from_binary(&bytes), Some(HospitalId(Uuid::from_u128(ID))));
        assert_eq!(HospitalId::from_binary(&bytes[..15]), None);
        assert_eq!(HospitalId::from_binary(&[0; 17]), None);
        assert_eq!(HospitalId::from_binary(&[]), None);
    }

    /// The rule in other words: strip braces, cut at the places where a hyphen may be, join.
    fn reference(text: &str) -> Option<u128> {
        let inner = match text.strip_prefix('{') {
            Some(inner) => inner.strip_suffix('}')?,
            None => text,
        };
        let mut digits = String::new();
        for (i, c) in inner.char_indices() {
            let hyphen_may_be =
                !digits.is_empty() && digits.len().is_multiple_of(4) && digits.len() < 32;
            match c {
                '-' if hyphen_may_be && !inner[..i].ends_with('-') => {}
                c if c.is_ascii_hexdigit() => digits.push(c),
                _ => return None,
            }
        }
        (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).expect("32 digits"))
    }

    /// Every byte in every place of the form that is read by a way of its own.
    #[test]
    fn reads_the_canonical_form_as_any_other() {
        let text = Uuid::from_u128(ID).to_string();
        for place in 0..text.len() {
            for byte in 0..0x80_u8 {
                let mut text = text.clone();
                text.replace_range(place..=place, &char::from(byte).to_string());
                assert_eq!(HospitalId::parse(&text), HospitalId::parse_any(&text), "{text:?}");
            }
        }
        // As long, and spelt otherwise.
        let other = "a0ee-bc99-9c0b-4ef8-bb6d6bb9bd380a11";
        assert_eq!(HospitalId::parse(other), Some(HospitalId(Uuid::from_u128(ID))));
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference_on_near_misses(
            id: u128,
            upper: bool,
            edits in prop::collection::vec((0usize..48, prop::sample::select(b"-{} 0aFgu:\0".to_vec())), 0..4),
            shape in 0usize..4,
        ) {
            let uuid = Uuid::from_u128(id);
            let mut text = match shape {
                0 => uuid.hyphenated().to_string(),
                1 => uuid.simple().to_string(),
                2 => uuid.braced().to_string(),
                _ => uuid.urn().to_string(),
            };
            if upper {
                text.make_ascii_uppercase();
            }
            for (at, byte) in edits {
                text.insert(at.min(text.len()), char::from(byte));
            }
            prop_assert_eq!(HospitalId::parse(&text).map(|h| h.0.as_u128()), reference(&text));
        }

        #[test]
        fn hyphens_anywhere_they_may_be(id: u128, hyphens: u8, braces: bool) {
            let digits = format!("{id:032x}");
            let mut text = String::new();
            for (i, group) in digits.as_bytes().chunks(4).enumerate() {
                text.push_str(std::str::from_utf8(group).expect("ASCII"));
                if i < 7 && hyphens >> i & 1 == 1 {
                    text.push('-');
                }
            }
            if braces {
                text = format!("{{{text}}}");
            }
            prop_assert_eq!(HospitalId::parse(&text), Some(HospitalId(Uuid::from_u128(id))));
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            prop_assert_eq!(HospitalId::parse(&text).map(|h| h.0.as_u128()), reference(&text));
        }
    }
}
