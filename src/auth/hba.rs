//! Rules for logins as in `pg_hba.conf`: who may come from where to which database, and with what proof.
//!
//! Pure: text in, [`Rules`] or all their problems out. The first rule that fits decides, and
//! nobody gets in by a rule that is not there. What Postgres knows and pgward can't do (groups,
//! host names, regular expressions for names, gss, ldap, ...) is a problem of the file, never a rule
//! that silently fits more or less than it says.

use std::net::IpAddr;

use super::ident::Maps;
use super::tokens::{self, Line, Token};
use crate::document::{Problems, Report};
use crate::net::{CertificateNames, Origin, TlsFacts};

/// Databases that are the admin console; a rule for one is for both, as both are the same.
pub const CONSOLE_DATABASES: [&str; 2] = ["pgward", "pgbouncer"];
/// Names that `@` files may bring into one field.
const NAMES_MAX: usize = 100_000;

/// How a client must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It does not get in.
    Reject,
    /// The password itself.
    Password,
    /// md5 over the password, or SCRAM where the stored secret is a SCRAM verifier.
    Md5,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// By its TLS certificate alone.
    Cert,
}

/// What a rule asks of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The proof.
    pub method: Method,
    /// What its certificate must show besides.
    pub certificate: Certificate,
}

/// What a client's certificate must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// None needed.
    Ignored,
    /// A trusted one, whoever it names.
    VerifyCa,
    /// One that names the user.
    VerifyFull {
        /// Map from the certificate's names to users; `None`: the name is the user's.
        map: Option<String>,
        /// Which of its names.
        name: NameOf,
    },
}

/// A name in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameOf {
    /// The subject's common name.
    CommonName,
    /// The whole subject, as RFC 2253 writes it.
    DistinguishedName,
}

/// A login as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Name that the client gives itself.
    pub user: &'a str,
    /// Database that it asks for; to a server as a whole (physical replication) it counts for nothing.
    pub database: &'a str,
    /// It is a connection for physical replication, which `replication` alone fits.
    pub is_physical: bool,
    /// How it is connected.
    pub origin: &'a Origin,
}

/// Why a login is refused before or instead of a proof: all of them 28000, in Postgres's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No rule fits.
    NoRule,
    /// The rule says `reject`.
    Rejected,
    /// No certificate was shown that is trusted.
    NoCertificate,
    /// The certificate names somebody else.
    OtherCertificate,
}

/// The rules of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    line: usize,
    connection: Connection,
    databases: Vec<Database>,
    users: Vec<User>,
    demand: Demand,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Connection {
    Local,
    Host { tls: Option<bool>, from: Range },
}

/// Addresses; `None`: all.
type Range = Option<Net>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    is_v4: bool,
    bits: u128,
    mask: u128,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Database {
    All,
    SameUser,
    Replication,
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum User {
    All,
    Name(String),
}

impl Demand {
    /// The proof alone.
    pub fn only(method: Method) -> Self {
        let certificate = match method {
            Method::Cert => Certificate::VerifyFull { map: None, name: NameOf::CommonName },
            _ => Certificate::Ignored,
        };
        Self { method, certificate }
    }

    /// Whether the connection's certificate is what this asks for.
    pub fn check_certificate(
        &self,
        tls: Option<&TlsFacts>,
        user: &str,
        maps: &Maps,
    ) -> Result<(), Refused> {
        let shown = tls.and_then(|tls| tls.client_certificate.as_ref());
        match (&self.certificate, shown) {
            (Certificate::Ignored, _) | (Certificate::VerifyCa, Some(_)) => Ok(()),
            (_, None) => Err(Refused::NoCertificate),
            (Certificate::VerifyFull { map, name }, Some(names)) => {
                let system = name.of(names).filter(|name| !name.is_empty());
                let fits = system.is_some_and(|system| match map {
                    Some(map) => maps.allow(map, system, user),
                    None => system == user,
                });
                if fits { Ok(()) } else { Err(Refused::OtherCertificate) }
            }
        }
    }
}

impl NameOf {
    fn of(self, names: &CertificateNames) -> Option<&str> {
        match self {
            Self::CommonName => names.common_name.as_deref(),
            Self::DistinguishedName => Some(&names.distinguished_name),
        }
    }
}

impl Refused {
    /// Postgres's words for it.
    pub fn message(self, asked: &Asked<'_>) -> String {
        let Asked { user, database, is_physical, origin } = asked;
        let host = match origin.peer {
            Some(peer) => peer.ip().to_canonical().to_string(),
            None => "[local]".to_owned(),
        };
        let tls = if origin.tls.is_some() { "SSL encryption" } else { "no encryption" };
        let whom = match is_physical {
            true => {
                format!("for replication connection from host \"{host}\", user \"{user}\", {tls}")
            }
            false => {
                format!("for host \"{host}\", user \"{user}\", database \"{database}\", {tls}")
            }
        };
        match self {
            Self::NoRule => format!("no pg_hba.conf entry {whom}"),
            Self::Rejected if *is_physical => {
                format!("pg_hba.conf rejects {}", whom.trim_start_matches("for "))
            }
            Self::Rejected => format!("pg_hba.conf rejects connection {whom}"),
            Self::NoCertificate => "connection requires a valid client certificate".to_owned(),
            Self::OtherCertificate => {
                format!("certificate authentication failed for user \"{user}\"")
            }
        }
    }
}

impl Rules {
    /// Reads `text`, called `file` in problems; `include` reads the files that `@name` stands for.
    pub fn parse(
        file: &str,
        text: &str,
        maps: &Maps,
        include: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Self, Problems> {
        let report = Report::new(file, text);
        let reader = Reader { report: &report, include, maps };
        let lines = tokens::lines(&report, text);
        let rules: Vec<Rule> = lines.iter().filter_map(|line| reader.rule(line).ok()).collect();
        if lines.is_empty() {
            report.at(&(0..0), "no rule: nobody could log in");
        }
        report.finish(Self(rules))
    }

    /// What the first rule that fits asks for.
    pub fn demand(&self, asked: &Asked<'_>) -> Result<&Demand, Refused> {
        match self.0.iter().find(|rule| rule.fits(asked)) {
            None => Err(Refused::NoRule),
            Some(Rule { demand: Demand { method: Method::Reject, .. }, .. }) => {
                Err(Refused::Rejected)
            }
            Some(rule) => Ok(&rule.demand),
        }
    }

    /// 1-based line of the first rule that fits.
    pub fn line(&self, asked: &Asked<'_>) -> Option<usize> {
        self.0.iter().find(|rule| rule.fits(asked)).map(|rule| rule.line)
    }
}

impl Rule {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        let connection = match (&self.connection, asked.origin.peer) {
            (Connection::Local, None) => true,
            (Connection::Host { tls, from }, Some(peer)) => {
                tls.is_none_or(|tls| tls == asked.origin.tls.is_some())
                    && from.is_none_or(|net| net.has(peer.ip()))
            }
            _ => false,
        };
        let is_console = CONSOLE_DATABASES.contains(&asked.database);
        let database = |database: &Database| match database {
            Database::Replication => asked.is_physical,
            _ if asked.is_physical => false,
            Database::All => true,
            Database::SameUser => asked.database == asked.user,
            Database::Name(name) if CONSOLE_DATABASES.contains(&name.as_str()) => is_console,
            Database::Name(name) => name == asked.database,
        };
        let user = |user: &User| match user {
            User::All => true,
            User::Name(name) => name == asked.user,
        };
        connection && self.databases.iter().any(database) && self.users.iter().any(user)
    }
}

impl Net {
    fn new(address: IpAddr, mask: u128) -> Self {
        let (is_v4, bits) = bits(address);
        Self { is_v4, bits: bits & mask, mask }
    }

    fn has(&self, address: IpAddr) -> bool {
        let (is_v4, bits) = bits(address);
        is_v4 == self.is_v4 && bits & self.mask == self.bits
    }
}

/// Family and bits. An IPv4 client that came to an IPv6 socket is an IPv4 client.
fn bits(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (true, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (false, v6.to_bits()),
    }
}

/// A problem has been noted that leaves no rule.
struct Noted;

struct Reader<'r, 't> {
    report: &'r Report<'t>,
    include: &'r dyn Fn(&str) -> Result<String, String>,
    maps: &'r Maps,
}

/// The fields of a line, taken one by one.
struct Fields<'l> {
    rest: std::slice::Iter<'l, Vec<Token>>,
    end: usize,
}

impl Reader<'_, '_> {
    fn wrong(&self, at: usize, what: impl Into<String>) -> Noted {
        self.report.at(&(at..at), what);
        Noted
    }

    fn rule(&self, line: &Line) -> Result<Rule, Noted> {
        let mut fields = Fields { rest: line.iter(), end: line[0][0].at };
        let kind = self.one(&mut fields, "the connection type")?;
        let tls = match kind.text.as_str() {
            "local" | "host" => None,
            "hostssl" => Some(true),
            "hostnossl" => Some(false),
            "hostgssenc" | "hostnogssenc" => {
                let what = "pgward has no GSSAPI encryption: write host, hostssl or hostnossl";
                return Err(self.wrong(kind.at, what));
            }
            other => {
                let what =
                    format!("connection type `{other}`: must be local, host, hostssl or hostnossl");
                return Err(self.wrong(kind.at, what));
            }
        };
        let is_local = kind.text == "local";
        // Told together: the fields after a wrong name are where they are.
        let databases = self.databases(fields.next(self, "the database")?);
        let users = self.users(fields.next(self, "the user")?);
        let connection = match is_local {
            true => Connection::Local,
            false => Connection::Host { tls, from: self.range(&mut fields)? },
        };
        let demand = self.demand(&mut fields, is_local, tls)?;
        Ok(Rule {
            line: self.report.line(&(kind.at..kind.at)),
            connection,
            databases: databases?,
            users: users?,
            demand,
        })
    }

    /// A field of one token.
    fn one<'l>(&self, fields: &mut Fields<'l>, what: &str) -> Result<&'l Token, Noted> {
        match fields.next(self, what)? {
            [token] => Ok(token),
            tokens => Err(self.wrong(tokens[0].at, format!("{what} must be one word, not a list"))),
        }
    }

    /// The names that `tokens` mean, with what `@` files hold.
    fn names(&self, tokens: &[Token]) -> Result<Vec<Token>, Noted> {
        let mut names = Vec::new();
        let mut noted = false;
        for token in tokens {
            let file = token.text.strip_prefix('@').filter(|_| !token.is_quoted);
            match file {
                None => names.push(token.clone()),
                Some("") => {
                    self.wrong(token.at, "`@` must be followed by a file's name");
                    noted = true;
                }
                Some(file) => match self.included(file, token.at) {
                    Ok(more) => names.extend(more),
                    Err(Noted) => noted = true,
                },
            }
        }
        if names.len() > NAMES_MAX {
            let what = format!("more than {NAMES_MAX} names in one field");
            return Err(self.wrong(tokens[0].at, what));
        }
        if noted { Err(Noted) } else { Ok(names) }
    }

    fn included(&self, file: &str, at: usize) -> Result<Vec<Token>, Noted> {
        let text = (self.include)(file)
            .map_err(|why| self.wrong(at, format!("can't read @{file}: {why}")))?;
        let inner = Report::new(file, &text);
        let tokens: Vec<Token> =
            tokens::lines(&inner, &text).into_iter().flatten().flatten().collect();
        if let Err(problems) = inner.finish(()) {
            return Err(self.wrong(at, format!("in @{file}: {problems}")));
        }
        if tokens.iter().any(|token| !token.is_quoted && token.text.starts_with('@')) {
            return Err(self.wrong(at, format!("in @{file}: a file may not name another by @")));
        }
        // Their places are in another text.
        Ok(tokens.into_iter().map(|token| Token { at, ..token }).collect())
    }

    fn databases(&self, tokens: &[Token]) -> Result<Vec<Database>, Noted> {
        let one = |token: &Token| match token.text.as_str() {
            _ if token.is("all") => Ok(Database::All),
            _ if token.is("sameuser") => Ok(Database::SameUser),
            _ if token.is("replication") => Ok(Database::Replication),
            name if token.is("samerole") || token.is("samegroup") => {
                Err(self.wrong(token.at, format!("`{name}`: {GROUPS}")))
            }
            name if name.starts_with('/') && !token.is_quoted => {
                Err(self.wrong(token.at, format!("`{name}`: {PATTERNS}")))
            }
            name => Ok(Database::Name(name.to_owned())),
        };
        all(self.names(tokens)?.iter().map(one))
    }

    fn users(&self, tokens: &[Token]) -> Result<Vec<User>, Noted> {
        let one = |token: &Token| match token.text.as_str() {
            _ if token.is("all") => Ok(User::All),
            name if name.starts_with('+') && !token.is_quoted => {
                Err(self.wrong(token.at, format!("`{name}`: {GROUPS}")))
            }
            name if name.starts_with('/') && !token.is_quoted => {
                Err(self.wrong(token.at, format!("`{name}`: {PATTERNS}")))
            }
            name => Ok(User::Name(name.to_owned())),
        };
        all(self.names(tokens)?.iter().map(one))
    }

    /// `all`, `address/bits`, or `address mask`.
    fn range(&self, fields: &mut Fields<'_>) -> Result<Range, Noted> {
        let token = self.one(fields, "the address")?;
        if token.is("all") {
            return Ok(None);
        }
        if token.is("samehost") || token.is("samenet") {
            let what = format!("`{}` is not supported: write the addresses", token.text);
            return Err(self.wrong(token.at, what));
        }
        let (address, bits) = match token.text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (token.text.as_str(), None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            let what = format!(
                "`{address}` is not an IP address (host names are not supported), nor `all`"
            );
            return Err(self.wrong(token.at, what));
        };
        let width = if address.is_ipv4() { 32 } else { 128 };
        let all = u128::MAX >> (128 - width);
        if let Some(bits) = bits {
            let digits = bits.bytes().all(|b| b.is_ascii_digit());
            let bits = bits.parse::<u32>().ok().filter(|bits| digits && *bits <= width);
            let Some(bits) = bits else {
                let what = format!("the mask length must be from 0 to {width}");
                return Err(self.wrong(token.at, what));
            };
            // A shift by the whole width is no shift.
            let mask = all.checked_shl(width - bits).unwrap_or(0) & all;
            return Ok(Some(Net::new(address, mask)));
        }
        let what = "a mask after an address without /bits";
        let mask = self.one(fields, what)?;
        match mask.text.parse::<IpAddr>() {
            Ok(parsed) if parsed.is_ipv4() == address.is_ipv4() => {
                let mask = match parsed {
                    IpAddr::V4(v4) => u128::from(v4.to_bits()),
                    IpAddr::V6(v6) => v6.to_bits(),
                };
                Ok(Some(Net::new(address, mask)))
            }
            Ok(_) => Err(self.wrong(mask.at, "address and mask are of different families")),
            Err(_) => {
                let what = format!(
                    "`{}` is not a mask: write the address as address/bits, or address mask",
                    mask.text
                );
                Err(self.wrong(mask.at, what))
            }
        }
    }

    fn demand(
        &self,
        fields: &mut Fields<'_>,
        is_local: bool,
        tls: Option<bool>,
    ) -> Result<Demand, Noted> {
        let token = self.one(fields, "the method")?;
        let method = match token.text.as_str() {
            "trust" => Ok(Method::Trust),
            "reject" => Ok(Method::Reject),
            "password" | "plain" => Ok(Method::Password),
            "md5" => Ok(Method::Md5),
            "scram-sha-256" => Ok(Method::ScramSha256),
            "cert" if tls == Some(true) => Ok(Method::Cert),
            "cert" => Err(self.wrong(token.at, "cert needs a certificate: it is for hostssl only")),
            "peer" => Err(self.wrong(token.at, "peer is not supported")),
            other => {
                let what = format!(
                    "method `{other}`: must be trust, reject, password, md5, scram-sha-256 or cert"
                );
                Err(self.wrong(token.at, what))
            }
        };
        let mut certificate = None;
        let mut name = None;
        let mut map = None;
        let mut noted = method.is_err();
        for tokens in fields.rest.by_ref() {
            let place = tokens[0].at;
            let text = tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>().join(",");
            let Some((key, value)) = text.split_once('=') else {
                self.wrong(place, format!("`{text}` is no option: write name=value"));
                noted = true;
                continue;
            };
            let is_cert = matches!(method, Ok(Method::Cert));
            let wrong = match (key, value) {
                ("clientcert", _) if tls != Some(true) || is_local => {
                    Some("clientcert is for hostssl only".to_owned())
                }
                ("clientcert", "verify-full") => {
                    certificate = Some(true);
                    None
                }
                ("clientcert", "verify-ca") if is_cert => {
                    Some("cert means clientcert=verify-full, not verify-ca".to_owned())
                }
                ("clientcert", "verify-ca") => {
                    certificate = Some(false);
                    None
                }
                ("clientcert", _) => Some("clientcert must be verify-full or verify-ca".to_owned()),
                ("clientname", _) if tls != Some(true) => {
                    Some("clientname is for hostssl only".to_owned())
                }
                ("clientname", "CN") => {
                    name = Some(NameOf::CommonName);
                    None
                }
                ("clientname", "DN") => {
                    name = Some(NameOf::DistinguishedName);
                    None
                }
                ("clientname", _) => Some("clientname must be CN or DN".to_owned()),
                ("map", _) if !is_cert => Some("map is for the method cert only".to_owned()),
                ("map", map_name) if !self.maps.has(map_name) => {
                    Some(format!("map `{map_name}` is not in auth_ident_file"))
                }
                ("map", map_name) => {
                    map = Some(map_name.to_owned());
                    None
                }
                _ => Some(format!("option `{key}` is not supported")),
            };
            if let Some(what) = wrong {
                self.wrong(place, what);
                noted = true;
            }
        }
        let method = method?;
        if noted {
            return Err(Noted);
        }
        let verifies = method == Method::Cert || certificate == Some(true);
        let certificate = match certificate {
            _ if verifies => {
                Certificate::VerifyFull { map, name: name.unwrap_or(NameOf::CommonName) }
            }
            _ if name.is_some() => {
                return Err(self.wrong(token.at, "clientname needs clientcert=verify-full"));
            }
            Some(_) => Certificate::VerifyCa,
            None => Certificate::Ignored,
        };
        Ok(Demand { method, certificate })
    }
}

const GROUPS: &str =
    "pgward doesn't know the members of roles: list the users, or name a file by @";
const PATTERNS: &str =
    "regular expressions are not supported here: list the names, or quote this one";

impl<'l> Fields<'l> {
    fn next(&mut self, reader: &Reader<'_, '_>, what: &str) -> Result<&'l [Token], Noted> {
        match self.rest.next() {
            Some(tokens) => {
                self.end = tokens[0].at;
                Ok(tokens)
            }
            None => Err(reader.wrong(self.end, format!("{what} is missing"))),
        }
    }
}

/// All of them, where none is wrong; each wrong one has been noted.
fn all<T>(items: impl Iterator<Item = Result<T, Noted>>) -> Result<Vec<T>, Noted> {
    let (mut good, mut noted) = (Vec::new(), false);
    for item in items {
        match item {
            Ok(item) => good.push(item),
            Err(Noted) => noted = true,
        }
    }
    if noted { Err(Noted) } else { Ok(good) }
}
