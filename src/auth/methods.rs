//! How a login is to prove itself: one method for all, or the rules of `auth_hba_file`.

use std::path::Path;

use super::hba::{Asked, Demand, Method, Refused, Rules};
use super::ident::Maps;
use crate::config::{Auth, AuthType};
use crate::document::{self, LoadError};

/// The methods of a configuration.
#[derive(Debug, Clone)]
pub struct Methods {
    choice: Choice,
    maps: Maps,
}

#[derive(Debug, Clone)]
enum Choice {
    One(Demand),
    Rules(Rules),
}

impl Methods {
    /// `auth_type`, with the rules and maps that it needs. Blocks.
    pub fn load(auth: &Auth) -> Result<Self, LoadError> {
        let named = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let maps = match named(&auth.auth_ident_file) {
            Some(path) => Maps::parse(&path.display().to_string(), &document::read(&path)?)?,
            None => Maps::default(),
        };
        let choice = match (auth.auth_type, named(&auth.auth_hba_file)) {
            (AuthType::Hba, Some(path)) => {
                let text = document::read(&path)?;
                let folder = path.parent().unwrap_or(Path::new(""));
                let include = |name: &str| {
                    document::read(&folder.join(name)).map_err(|error| error.to_string())
                };
                Choice::Rules(Rules::parse(&path.display().to_string(), &text, &maps, &include)?)
            }
            (auth_type, _) => Choice::one(auth_type),
        };
        Ok(Self { choice, maps })
    }

    /// One method for all; for [`AuthType::Hba`], which needs rules, nobody gets in.
    pub fn one(auth_type: AuthType) -> Self {
        Self { choice: Choice::one(auth_type), maps: Maps::default() }
    }

    /// Rules, with the maps that they name.
    pub fn rules(rules: Rules, maps: Maps) -> Self {
        Self { choice: Choice::Rules(rules), maps }
    }

    /// What this login must show; its certificate, where one is asked for, has been checked.
    pub fn demand(&self, asked: &Asked<'_>) -> Result<Method, Refused> {
        let demand = match &self.choice {
            Choice::One(demand) => demand,
            Choice::Rules(rules) => rules.demand(asked)?,
        };
        demand.check_certificate(asked.origin.tls.as_ref(), asked.user, &self.maps)?;
        Ok(demand.method)
    }
}

impl Choice {
    fn one(auth_type: AuthType) -> Self {
        Self::One(Demand::only(match auth_type {
            AuthType::Trust => Method::Trust,
            AuthType::Plain => Method::Password,
            AuthType::Md5 => Method::Md5,
            AuthType::ScramSha256 => Method::ScramSha256,
            AuthType::Cert => Method::Cert,
            AuthType::Hba => return Self::Rules(Rules::default()),
        }))
    }
}
