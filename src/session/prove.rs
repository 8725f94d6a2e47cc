//! A client proves who it is, by whichever method its rule asks for.
//!
//! For every method a name that does not exist goes the same way as one that does, in the same
//! time, to the same words. Who a client is is decided at the end of a proof and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use super::login::{Conversation, Door, Error};
use super::lookup::Failed;
use crate::auth::scram::{self, Channel, ServerExchange};
use crate::auth::{self, Asked, Method, PassKeys, Secret, User};
use crate::route::refusals;
use crate::wire::backend;
use crate::wire::frontend::SaslInitial;
use crate::wire::startup::{Replication, StartupParams};

/// Takes a client from its StartupMessage to a proof.
pub(super) async fn prove(
    client: &mut Conversation,
    startup: &StartupParams,
    door: &Door<'_>,
) -> Result<Arc<User>, Error> {
    let origin = client.origin();
    let name = startup.user.as_str();
    let asked = Asked {
        user: name,
        database: &startup.database,
        is_physical: startup.replication == Some(Replication::Physical),
        origin: &origin,
    };
    let method = door.users.methods().demand(&asked);
    let method = method.map_err(|refused| refusals::no_login(refused.message(&asked)))?;
    let mut claim = Claim { name, door, user: None };
    claim.find().await?;
    let proven = match method {
        Method::Trust => claim.trusted()?,
        Method::Cert => claim.certified()?,
        Method::Password => password(client, &mut claim).await?,
        Method::Md5 if !door.users.is_asked_for_scram(claim.user.as_deref()) => {
            md5(client, &mut claim).await?
        }
        Method::Md5 | Method::ScramSha256 => sasl(client, &claim).await?,
        // No rule gets as far as this.
        Method::Reject => return Err(claim.unproven(auth::Error::Denied)),
    };
    Ok(proven)
}

/// Who a client says it is.
struct Claim<'a> {
    name: &'a str,
    door: &'a Door<'a>,
    /// The user of that name, if there is one; not yet who the client is.
    user: Option<Arc<User>>,
}

impl Claim<'_> {
    /// The users file first, then the lookup.
    async fn find(&mut self) -> Result<(), Error> {
        self.user = match (self.door.users.get(self.name), self.door.lookup) {
            (Some(user), _) => Some(user.clone()),
            (None, Some(lookup)) => {
                lookup.find(self.name).await.map_err(|Failed| refusals::no_lookup())?
            }
            (None, None) => None,
        };
        Ok(())
    }

    /// A proof has failed: whether the secret may have changed since it was looked up, in which
    /// case it has been looked up again.
    async fn find_again(&mut self) -> Result<bool, Error> {
        let is_listed = self.door.users.get(self.name).is_some();
        match self.door.lookup {
            Some(lookup) if !is_listed && lookup.forget(self.name) => {
                self.find().await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn trusted(&self) -> Result<Arc<User>, Error> {
        let words = || format!("role \"{}\" does not exist", self.name);
        self.valid().ok_or_else(|| refusals::no_login(words()).into())
    }

    fn certified(&self) -> Result<Arc<User>, Error> {
        let words = || format!("certificate authentication failed for user \"{}\"", self.name);
        self.valid().ok_or_else(|| refusals::no_login(words()).into())
    }

    /// The user, unless its time is over.
    fn valid(&self) -> Option<Arc<User>> {
        let user = self.user.clone().filter(|user| !user.is_expired(SystemTime::now()))?;
        Some(self.door.users.at_home(user))
    }

    /// The proof is right: this is who the client is, unless its time is over.
    fn proven(&self, keys: Option<Arc<PassKeys>>) -> Result<Arc<User>, Error> {
        let user = self.valid().ok_or_else(|| self.unproven(auth::Error::Denied))?;
        Ok(match keys {
            Some(keys) => user.proven_with(keys),
            None => user,
        })
    }

    fn unproven(&self, error: auth::Error) -> Error {
        match error {
            auth::Error::Malformed(what) => refusals::malformed_scram(what).into(),
            auth::Error::Channel(what) => refusals::no_login(what.to_owned()).into(),
            auth::Error::Denied | auth::Error::Impostor | auth::Error::OtherVerifier => {
                refusals::login_failed(self.name).into()
            }
        }
    }
}

/// The password itself.
async fn password(client: &mut Conversation, claim: &mut Claim<'_>) -> Result<Arc<User>, Error> {
    backend::write_authentication_cleartext(client.output.tail());
    client.flush().await?;
    let body = client.proof_message("a password").await?;
    let text = c_string(&body)?;
    let Ok(text) = std::str::from_utf8(text) else {
        return Err(claim.unproven(auth::Error::Denied));
    };
    let password = Secret::new(text);
    loop {
        let check =
            claim.door.users.password_check(claim.name, claim.user.clone(), password.clone());
        let checked = match tokio::task::spawn_blocking(check).await {
            Ok(checked) => checked,
            Err(error) => return Err(io::Error::other(error).into()),
        };
        match checked {
            Ok(keys) => return claim.proven(keys),
            Err(error) => {
                if !claim.find_again().await? {
                    return Err(claim.unproven(error));
                }
            }
        }
    }
}

/// md5 over the password's hash and a salt.
async fn md5(client: &mut Conversation, claim: &mut Claim<'_>) -> Result<Arc<User>, Error> {
    let salt = rand::random();
    backend::write_authentication_md5(client.output.tail(), salt);
    client.flush().await?;
    let body = client.proof_message("a password").await?;
    let response = c_string(&body)?;
    loop {
        let users = claim.door.users;
        match users.check_md5(claim.name, claim.user.as_deref(), salt, response) {
            Ok(()) => return claim.proven(None),
            Err(error) => {
                if !claim.find_again().await? {
                    return Err(claim.unproven(error));
                }
            }
        }
    }
}

/// SCRAM-SHA-256, bound to the TLS connection if there is one and the client can.
async fn sasl(client: &mut Conversation, claim: &Claim<'_>) -> Result<Arc<User>, Error> {
    let end_point = claim.door.end_point().filter(|_| client.is_tls());
    let mechanisms: &[&str] = match end_point {
        Some(_) => &[scram::MECHANISM_PLUS, scram::MECHANISM],
        None => &[scram::MECHANISM],
    };
    backend::write_authentication_sasl(client.output.tail(), mechanisms);
    client.flush().await?;

    let body = client.proof_message("a SASL response").await?;
    let initial = SaslInitial::read(&body)?;
    let channel = match end_point {
        Some(end) if initial.mechanism == scram::MECHANISM_PLUS.as_bytes() => Channel::Bound(end),
        Some(end) if initial.mechanism == scram::MECHANISM.as_bytes() => Channel::Declined(end),
        None if initial.mechanism == scram::MECHANISM.as_bytes() => Channel::Unbound,
        _ => {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(Error::violation(message));
        }
    };
    let client_first = initial.data.unwrap_or_default();
    let verifier = claim.door.users.verifier(claim.name, claim.user.as_deref());
    let (server_first, exchange) = ServerExchange::start_on(channel, client_first, &verifier)
        .map_err(|error| claim.unproven(error))?;
    backend::write_authentication_sasl_continue(client.output.tail(), &server_first);
    client.flush().await?;

    let client_final = client.proof_message("a SASL response").await?;
    let proven = match exchange.finish(&client_final) {
        Ok(proven) => proven,
        Err(error) => {
            // The exchange began with the salt of that secret, so only the next one can use another.
            if let Some(lookup) = claim.door.lookup {
                lookup.forget(claim.name);
            }
            return Err(claim.unproven(error));
        }
    };
    let user = claim.proven(Some(proven.keys))?;
    backend::write_authentication_sasl_final(client.output.tail(), &proven.server_final);
    Ok(user)
}

/// The string that is all of a PasswordMessage.
fn c_string(body: &[u8]) -> Result<&[u8], Error> {
    match body.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(Error::violation("invalid password packet size")),
    }
}
