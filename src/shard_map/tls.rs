//! How a shard's hosts are spoken to, where that differs from `[tls]` of the configuration.
//!
//! Only what the map says: files are read, and made into settings of connections, by `net::tls`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{Fields, Report};

/// How much a side of a connection asks of TLS, in the words of libpq and PgBouncer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the other side insists.
    Allow,
    /// Where the other side can.
    Prefer,
    /// Always; whose certificate it is doesn't matter.
    Require,
    /// Always, with a certificate of a trusted authority.
    VerifyCa,
    /// As `verify-ca`, and it is of the very host.
    VerifyFull,
}

impl SslMode {
    /// As written, weakest first.
    const NAMES: [(&str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// Nothing goes in the clear.
    pub fn is_encrypted(self) -> bool {
        self >= Self::Require
    }

    /// The other side's certificate must be of a trusted authority.
    pub fn is_verified(self) -> bool {
        self >= Self::VerifyCa
    }
}

/// `tls = { ... }` of a shard; what is not said is as in `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardTls {
    /// Instead of `server_tls_sslmode`.
    pub sslmode: Option<SslMode>,
    /// Instead of `server_tls_ca_file`; relative to the map's file.
    pub ca_file: Option<PathBuf>,
    /// Instead of `server_tls_key_file`; relative to the map's file.
    pub key_file: Option<PathBuf>,
    /// Instead of `server_tls_cert_file`; relative to the map's file.
    pub cert_file: Option<PathBuf>,
}

impl ShardTls {
    /// Reads `tls = { ... }` of a shard's table.
    pub(super) fn read(report: &Report<'_>, shard: &mut Fields<'_, '_>) -> Self {
        let Some(mut table) = shard.table("tls", "`tls`") else { return Self::default() };
        let sslmode = table.string("sslmode").and_then(|text| {
            let known = SslMode::NAMES.iter().find(|(name, _)| name == text.get_ref());
            if known.is_none() {
                let names = SslMode::NAMES.map(|(name, _)| name).join(", ");
                let message =
                    format!("`sslmode` must be one of {names}, not \"{}\"", text.get_ref());
                report.at(&text.span(), message);
            }
            known.map(|(_, mode)| *mode)
        });
        let mut file = |key| {
            let text = table.string(key)?;
            if text.get_ref().is_empty() {
                report.at(&text.span(), format!("`{key}` names no file"));
            }
            Some(PathBuf::from(*text.get_ref()))
        };
        let (ca_file, key_file, cert_file) = (file("ca_file"), file("key_file"), file("cert_file"));
        if key_file.is_some() != cert_file.is_some() {
            report.at(table.span(), "`key_file` and `cert_file` belong together");
        }
        table.finish();
        Self { sslmode, ca_file, key_file, cert_file }
    }

    /// Paths are relative to `folder`; an absolute one stays as it is.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let files = [&mut self.ca_file, &mut self.key_file, &mut self.cert_file];
        for path in files.into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }
}
