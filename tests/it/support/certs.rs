//! Certificates made on the spot: an authority, and what it signs. No file of the machine is used.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm,
    date_time_ymd,
};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    pub pem: String,
    pub key: String,
}

/// What a certificate says.
#[derive(Clone, Copy, Default)]
pub struct Subject<'a> {
    pub common_name: &'a str,
    pub organization: &'a str,
    /// Alternative names.
    pub names: &'a [&'a str],
    pub is_expired: bool,
    /// Default: ECDSA P-256 with SHA-256.
    pub algorithm: Option<&'static SignatureAlgorithm>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::with(name, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// One that signs with `algorithm`.
    pub fn with(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = params(Subject { common_name: name, ..Subject::default() });
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn issue(&self, subject: Subject<'_>) -> Issued {
        let algorithm = subject.algorithm.unwrap_or(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = params(subject).signed_by(&key, &self.issuer).expect("signed");
        Issued { pem: certificate.pem(), key: key.serialize_pem() }
    }
}

/// One that signs itself and calls itself an authority, as `openssl req -x509` makes it.
pub fn self_signed(subject: Subject<'_>) -> Issued {
    let mut params = params(subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let algorithm = subject.algorithm.unwrap_or(&rcgen::PKCS_ECDSA_P256_SHA256);
    let key = KeyPair::generate_for(algorithm).expect("a key");
    Issued { pem: params.self_signed(&key).expect("signed").pem(), key: key.serialize_pem() }
}

fn params(subject: Subject<'_>) -> CertificateParams {
    let names: Vec<String> = subject.names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !subject.organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, subject.organization);
    }
    if !subject.common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, subject.common_name);
    }
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(if subject.is_expired { 2021 } else { 2096 }, 1, 1);
    params
}

impl Issued {
    /// Writes both into `directory`, readable by its owner alone; gives their paths.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        (
            put(directory, &format!("{name}.crt"), &self.pem),
            put(directory, &format!("{name}.key"), &self.key),
        )
    }
}

/// Writes `text` into a file that belongs to whom `directory` does, and is readable by them alone.
pub fn put(directory: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let path = directory.join(name);
    std::fs::write(&path, text).expect(name);
    let owner = std::fs::metadata(directory).expect("a directory");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect(name);
    chown(&path, Some(owner.uid()), Some(owner.gid())).expect(name);
    path
}
