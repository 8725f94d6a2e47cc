//! Postgres grammar to [`super::Analysis`]; the one file that names the SQL parser.
