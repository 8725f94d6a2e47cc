//! PgBouncer's `userlist.txt`: lines of `"name" "secret"`, and comments behind `;`.
//!
//! A doubled quote within quotes is one quote. Its users have the least rights.

use std::collections::HashSet;
use std::sync::Arc;

use super::{
    ServerCredentials, TEXT_BYTES_MAX, User, UserLimits, is_usable, needs_another, own_secret,
};
use crate::auth::secrets::{Secrets, Stored};
use crate::config::AuthType;
use crate::document::{Problems, Report};
use crate::route::Rights;

/// Reads `text`, called `file` in problems, none of which quotes a secret.
pub(super) fn read(file: &str, text: &str, auth_type: AuthType) -> Result<Vec<User>, Problems> {
    let report = Report::new(file, text);
    let mut users = Vec::new();
    let mut names = HashSet::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') || line.starts_with('#') {
            continue;
        }
        match user(line, auth_type) {
            Ok(user) if names.insert(user.name.clone()) => users.push(user),
            Ok(user) => {
                report.at(&(start..start), format!("user \"{}\" is listed twice", user.name))
            }
            Err(what) => report.at(&(start..start), what),
        }
    }
    report.finish(users)
}

fn user(line: &str, auth_type: AuthType) -> Result<User, String> {
    const SHAPE: &str = "a line is \"name\" \"secret\"";
    let (name, rest) = quoted(line).ok_or(SHAPE)?;
    let (secret, rest) = quoted(rest.trim_start()).ok_or(SHAPE)?;
    // PgBouncer ignores what follows on the line; so may be told why it does not count.
    if !(rest.is_empty() || rest.starts_with(char::is_whitespace)) {
        return Err(SHAPE.into());
    }
    if !is_usable(&name) {
        return Err(format!("a name has 1 to {TEXT_BYTES_MAX} bytes, no NUL"));
    }
    let secrets = match secret.as_str() {
        "" => Secrets::none(),
        text if !is_usable(text) => {
            return Err(format!("a secret has 1 to {TEXT_BYTES_MAX} bytes, no NUL"));
        }
        text => {
            let stored = Stored::read(text).map_err(|_| "not a SCRAM-SHA-256 verifier")?;
            Secrets::new(stored, None).map_err(|clash| clash.to_string())?
        }
    };
    if let Some(what) = needs_another(auth_type, &secrets) {
        return Err(what.into());
    }
    Ok(User {
        server: Arc::new(ServerCredentials::new(&name, own_secret(&secrets))),
        name,
        rights: Rights::default(),
        limits: UserLimits::default(),
        is_listed: true,
        valid_until: None,
        secrets: Arc::new(secrets),
    })
}

/// A text in quotes at the start of `line`, and what follows it.
fn quoted(line: &str) -> Option<(String, &str)> {
    let mut rest = line.strip_prefix('"')?;
    let mut text = String::new();
    loop {
        let end = rest.find('"')?;
        text.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                text.push('"');
                rest = after;
            }
            None => return Some((text, rest)),
        }
    }
}
