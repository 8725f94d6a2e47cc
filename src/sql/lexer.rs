//! One pass over a text: its literals become slots, its comments go, its hint is read.

/// A text after one pass.
#[derive(Debug, Clone, Default)]
pub struct Lexed<'a> {
    /// The text as sent.
    pub text: &'a str,
}

impl<'a> Lexed<'a> {
    /// The value of string literal `slot` (quotes off, doubled quotes undone), borrowed where possible.
    pub fn literal(&self, _slot: u16) -> Option<std::borrow::Cow<'a, str>> {
        unimplemented!("sql helper")
    }

    /// The hint `/* hospital_id='...' */`, leading or trailing; several that differ are an error.
    pub fn hint(&self) -> Result<Option<&'a str>, ()> {
        unimplemented!("sql helper")
    }
}
