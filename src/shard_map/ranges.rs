//! Lists of numbers as people write them: `0-24,50`.

use std::ops::RangeInclusive;

/// What is wrong with such a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// Neither a number nor a range.
    #[error("`{0}` is neither a number nor a range: write lists such as \"0-24,50\"")]
    Syntax(String),
    /// From high to low.
    #[error("the range {0}-{1} runs backwards")]
    Backwards(u32, u32),
    /// Past the end.
    #[error("{0} is too high: the last is {1}")]
    TooHigh(u32, u32),
    /// Said twice.
    #[error("{0} is there twice")]
    Twice(u32),
}

/// Reads a list of numbers up to `last`; an empty one is fine. Sorted, without overlaps.
pub(super) fn parse(text: &str, last: u32) -> Result<Vec<RangeInclusive<u32>>, RangesError> {
    let mut ranges = Vec::new();
    if text.trim().is_empty() {
        return Ok(ranges);
    }
    for part in text.split(',').map(str::trim) {
        let number = |digits: &str| {
            let digits = digits.trim();
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            let number = digits.parse::<u32>().ok().filter(|_| plain);
            number.ok_or_else(|| RangesError::Syntax(part.to_owned()))
        };
        let (low, high) = match part.split_once('-') {
            Some((low, high)) => (number(low)?, number(high)?),
            None => (number(part)?, number(part)?),
        };
        if high < low {
            return Err(RangesError::Backwards(low, high));
        }
        if high > last {
            return Err(RangesError::TooHigh(high, last));
        }
        ranges.push(low..=high);
    }
    ranges.sort_by_key(|range| *range.start());
    match ranges.windows(2).find(|pair| pair[1].start() <= pair[0].end()) {
        Some(pair) => Err(RangesError::Twice(*pair[1].start())),
        None => Ok(ranges),
    }
}

/// Writes rising numbers as such a list.
pub(super) fn show(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let runs = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        [one] => one.to_string(),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let cases: &[(&str, Result<&str, &str>)] = &[
            ("0-24,50", Ok("0-24,50")),
            (" 50 , 0 - 24 ", Ok("0-24,50")),
            ("0-9,10-19", Ok("0-19")),
            ("", Ok("")),
            ("99", Ok("99")),
            ("100", Err("100 is too high: the last is 99")),
            ("0-100", Err("100 is too high: the last is 99")),
            ("24-0", Err("the range 24-0 runs backwards")),
            ("0-24,24", Err("24 is there twice")),
            ("0-50,1-2", Err("1 is there twice")),
            ("0-", Err("`0-` is neither a number nor a range: write lists such as \"0-24,50\"")),
            ("1,", Err("`` is neither a number nor a range: write lists such as \"0-24,50\"")),
            ("+1", Err("`+1` is neither a number nor a range: write lists such as \"0-24,50\"")),
            ("-1", Err("`-1` is neither a number nor a range: write lists such as \"0-24,50\"")),
            ("a", Err("`a` is neither a number nor a range: write lists such as \"0-24,50\"")),
        ];
        for (text, want) in cases {
            let got = parse(text, 99)
                .map(|ranges| show(&ranges.into_iter().flatten().collect::<Vec<_>>()))
                .map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), *want, "{text:?}");
        }
    }
}
