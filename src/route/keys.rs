//! Values of hospital keys: literals and parameters, in text and binary, single and in arrays.
//!
//! Reads exactly what Postgres would read as a uuid there, and refuses the rest by position, never
//! by value. Arrays that are not one plain dimension are refused. Called by `decide` and `explain`.

use super::{Refusal, Values, refusals};
use crate::shard_map::HospitalId;
use crate::sql::{KeySource, ParamKind};

/// pg_type's OIDs of what an array's elements may be.
const UUID_OID: i32 = 2950;
const TEXT_OIDS: [i32; 2] = [25, 1043];

/// Reads the values of `key` and hands each to `each`, `None` for NULL.
#[inline]
pub(super) fn read(
    key: KeySource,
    values: &dyn Values,
    mut each: impl FnMut(Option<HospitalId>),
) -> Result<(), Refusal> {
    match key {
        KeySource::Slot(slot) => {
            let text = values.literal(slot).ok_or_else(refusals::internal)?;
            each(Some(HospitalId::parse(&text).ok_or_else(|| bad_literal(slot))?));
            Ok(())
        }
        KeySource::SlotArray(slot) => {
            let text = values.literal(slot).ok_or_else(refusals::internal)?;
            text_array(text.as_bytes(), each).ok_or_else(|| bad_literal(slot))
        }
        KeySource::Param(n, kind) => {
            match values.param(n).ok_or_else(|| refusals::no_parameter(n))? {
                (_, None) => each(None),
                (format, Some(bytes)) => {
                    let is_binary = is_binary(format)? && kind == ParamKind::Uuid;
                    each(Some(scalar(bytes, is_binary).ok_or_else(|| bad_param(n))?));
                }
            }
            Ok(())
        }
        KeySource::ParamArray(n, kind) => {
            match values.param(n).ok_or_else(|| refusals::no_parameter(n))? {
                (_, None) => {
                    each(None);
                    Ok(())
                }
                (format, Some(bytes)) => match is_binary(format)? {
                    true => binary_array(bytes, kind, each),
                    false => text_array(bytes, each),
                }
                .ok_or_else(|| bad_param(n)),
            }
        }
    }
}

/// Where `key` stands, for people.
pub(super) fn place(key: KeySource) -> String {
    match key {
        KeySource::Slot(slot) => format!("literal {}", u32::from(slot) + 1),
        KeySource::SlotArray(slot) => format!("array literal {}", u32::from(slot) + 1),
        KeySource::Param(n, _) => format!("parameter ${n}"),
        KeySource::ParamArray(n, _) => format!("array parameter ${n}"),
    }
}

#[cold]
fn bad_literal(slot: u16) -> Refusal {
    refusals::not_a_uuid(&place(KeySource::Slot(slot)))
}

#[cold]
fn bad_param(n: u16) -> Refusal {
    refusals::not_a_uuid(&place(KeySource::Param(n, ParamKind::Uuid)))
}

fn is_binary(format: i16) -> Result<bool, Refusal> {
    match format {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(refusals::bad_format_code(other)),
    }
}

fn scalar(bytes: &[u8], is_binary: bool) -> Option<HospitalId> {
    match is_binary {
        true => HospitalId::from_binary(bytes),
        false => HospitalId::parse(std::str::from_utf8(bytes).ok()?),
    }
}

/// `{a,"b",NULL}` (manual: "Array Input and Output Syntax"). Without what no uuid needs:
/// backslashes, bounds, more dimensions.
fn text_array(text: &[u8], mut each: impl FnMut(Option<HospitalId>)) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    let mut rest = skip_space(text).strip_prefix('{')?;
    if let Some(tail) = skip_space(rest).strip_prefix('}') {
        return skip_space(tail).is_empty().then_some(());
    }
    loop {
        rest = skip_space(rest);
        if let Some(quoted) = rest.strip_prefix('"') {
            let (element, tail) = quoted.split_once('"')?;
            each(Some(HospitalId::parse(element)?));
            rest = skip_space(tail);
        } else {
            let (element, tail) = rest.split_at(rest.find([',', '}'])?);
            let element = element.trim_end_matches(is_space);
            let is_null = element.eq_ignore_ascii_case("null");
            each(if is_null { None } else { Some(HospitalId::parse(element)?) });
            rest = tail;
        }
        rest = match rest.strip_prefix(',') {
            Some(tail) => tail,
            None => {
                let tail = rest.strip_prefix('}')?;
                return skip_space(tail).is_empty().then_some(());
            }
        };
    }
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// What Postgres's array input skips.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Dimensions, a flag, the element's OID, (length, lower bound) for each dimension, then elements of
/// (length or -1, bytes): what `array_send` writes.
fn binary_array(
    bytes: &[u8],
    kind: ParamKind,
    mut each: impl FnMut(Option<HospitalId>),
) -> Option<()> {
    let mut rest = bytes;
    let dimensions = int(&mut rest)?;
    let _has_null = int(&mut rest)?;
    let of = int(&mut rest)?;
    let is_expected = match kind {
        ParamKind::Uuid => of == UUID_OID,
        ParamKind::Text => TEXT_OIDS.contains(&of),
    };
    if !is_expected || !matches!(dimensions, 0 | 1) {
        return None;
    }
    if dimensions == 1 {
        let count = usize::try_from(int(&mut rest)?).ok()?;
        let _lower_bound = int(&mut rest)?;
        for _ in 0..count {
            match int(&mut rest)? {
                -1 => each(None),
                length => {
                    let length = usize::try_from(length).ok()?;
                    let (element, tail) = rest.split_at_checked(length)?;
                    each(Some(scalar(element, kind == ParamKind::Uuid)?));
                    rest = tail;
                }
            }
        }
    }
    rest.is_empty().then_some(())
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(i32::from_be_bytes(*head))
}
