//! What a certificate says: names for login rules, its hash for channel binding.
//!
//! Nothing here decides whether to trust it. Formats: RFC 5280 for certificates, RFC 5929 for the
//! hash (`tls-server-end-point`), RFC 4514, which took RFC 2253's place, for names as text.

use ring::digest;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::name::Name;

use crate::net::CertificateNames;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// Signature algorithms by the hash that they use; of RSA-PSS the parameters say it.
const SIGNATURES: [(&str, &digest::Algorithm); 10] = [
    // MD5 and SHA-1 are no hashes to bind to: RFC 5929 takes SHA-256 for them.
    ("1.2.840.113549.1.1.4", &digest::SHA256),
    ("1.2.840.113549.1.1.5", &digest::SHA256),
    ("1.2.840.10045.4.1", &digest::SHA256),
    ("1.2.840.10040.4.3", &digest::SHA256),
    ("1.2.840.113549.1.1.11", &digest::SHA256),
    ("1.2.840.113549.1.1.12", &digest::SHA384),
    ("1.2.840.113549.1.1.13", &digest::SHA512),
    ("1.2.840.10045.4.3.2", &digest::SHA256),
    ("1.2.840.10045.4.3.3", &digest::SHA384),
    ("1.2.840.10045.4.3.4", &digest::SHA512),
];
/// Hashes by name; SHA-1 is what RSA-PSS has where it names none.
const HASHES: [(&str, &digest::Algorithm); 4] = [
    ("1.3.14.3.2.26", &digest::SHA256),
    ("2.16.840.1.101.3.4.2.1", &digest::SHA256),
    ("2.16.840.1.101.3.4.2.2", &digest::SHA384),
    ("2.16.840.1.101.3.4.2.3", &digest::SHA512),
];

/// The names in the certificate `der`; `None` where it can't be read.
pub(super) fn names(der: &[u8]) -> Option<CertificateNames> {
    let certificate = Certificate::from_der(der).ok()?;
    let subject = certificate.tbs_certificate().subject();
    Some(CertificateNames {
        common_name: common_name(subject),
        distinguished_name: subject.to_string(),
    })
}

/// The hash of the certificate `der` that a login may be bound to. Empty where none is defined: for
/// Ed25519, which signs without a hash of its own, libpq can't make one and fails if it is asked
/// to; so channel binding is not offered then.
pub(super) fn end_point(der: &[u8]) -> Vec<u8> {
    let Ok(certificate) = Certificate::from_der(der) else { return Vec::new() };
    let algorithm = certificate.signature_algorithm();
    let found = if algorithm.oid == RSA_PSS {
        // RSASSA-PSS-params: a sequence that begins with [0] the hash's identifier, or without.
        let parameters = algorithm.parameters.as_ref().map(|any| any.value()).unwrap_or_default();
        match parameters {
            [0xa0, _, 0x30, _, rest @ ..] => {
                ObjectIdentifier::from_der(oid_bytes(rest)).ok().and_then(|oid| hash(&HASHES, oid))
            }
            _ => Some(&digest::SHA256),
        }
    } else {
        hash(&SIGNATURES, algorithm.oid)
    };
    found.map_or_else(Vec::new, |hash| digest::digest(hash, der).as_ref().to_vec())
}

/// The object identifier at the start of `rest`, and no more.
fn oid_bytes(rest: &[u8]) -> &[u8] {
    let length = rest.get(1).map_or(0, |length| usize::from(*length) + 2);
    rest.get(..length).unwrap_or_default()
}

fn hash(
    table: &[(&str, &'static digest::Algorithm)],
    oid: ObjectIdentifier,
) -> Option<&'static digest::Algorithm> {
    let known = table.iter().find(|(name, _)| oid.to_string() == *name);
    known.map(|(_, algorithm)| *algorithm)
}

/// Does the certificate `der` name `host` the old way, in its common name, as `openssl req -subj
/// /CN=host` makes it? Only where it has no alternative names at all, as libpq has it.
pub(super) fn is_for_common_name(der: &[u8], host: &str) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else { return false };
    let body = certificate.tbs_certificate();
    if !matches!(body.get_extension::<SubjectAltName>(), Ok(None)) {
        return false;
    }
    let Some(name) = common_name(body.subject()) else { return false };
    match name.strip_prefix("*.") {
        // A star stands for one label, and never for a part of an IP address.
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty()
                && parent.contains('.')
                && rest.eq_ignore_ascii_case(parent)
                && host.parse::<std::net::IpAddr>().is_err()
        }),
        None => name.eq_ignore_ascii_case(host),
    }
}

/// Is `now`, seconds since 1970, within the validity of the certificate `der`?
pub(super) fn is_valid_at(der: &[u8], now: u64) -> bool {
    Certificate::from_der(der).is_ok_and(|certificate| {
        let validity = certificate.tbs_certificate().validity();
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
        (seconds(&validity.not_before)..=seconds(&validity.not_after)).contains(&now)
    })
}

/// The one common name. Where there are two, which one is vouched for is anybody's guess; and one
/// with a NUL reads differently in different places.
fn common_name(subject: &Name) -> Option<String> {
    let mut names = subject.iter().filter(|attribute| attribute.oid == COMMON_NAME);
    let (Some(only), None) = (names.next(), names.next()) else { return None };
    use x509_cert::der::Tag;
    let name = match only.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            std::str::from_utf8(only.value.value()).ok()?.to_owned()
        }
        // Latin-1, in practice.
        Tag::TeletexString => only.value.value().iter().map(|byte| char::from(*byte)).collect(),
        _ => return None,
    };
    Some(name).filter(|name| !name.is_empty() && !name.contains('\0'))
}
