//! pg_catalog functions and relations that every login may use, and which of them are read-only.
