//! Server messages: views of the few that pgward reads, builders of the few that it sends.

use bytes::BytesMut;

/// An ErrorResponse or NoticeResponse of pgward's own (manual: "Error and Notice Message Fields").
///
/// Carries no SQL text, no value and no other hospital's id: whatever is put here reaches a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// `ERROR`, `FATAL`, `WARNING` or `NOTICE`.
    pub severity: &'static str,
    /// Five characters, from [`super::sqlstate`].
    pub sqlstate: &'static str,
    /// The primary message.
    pub message: String,
    /// More about this case.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// 1-based character position in the statement.
    pub position: Option<u32>,
}

impl ErrorReply {
    /// An `ERROR` with `message` and nothing else.
    pub fn error(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: "ERROR",
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
        }
    }

    /// A `FATAL`: the connection is closed behind it.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { severity: "FATAL", ..Self::error(sqlstate, message) }
    }

    /// Adds a detail line.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a hint line.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Appends the message to `out`: ErrorResponse, or NoticeResponse for WARNING and NOTICE.
    pub fn encode(&self, _out: &mut BytesMut) {
        unimplemented!("login helper")
    }
}
