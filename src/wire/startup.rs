//! Untagged packets of the start: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
