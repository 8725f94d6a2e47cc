//! The files that people edit: config, shard map, users.

use pgward::auth::Users;
use pgward::auth::users::Source;
use pgward::config::{Auth, AuthType, Config};
use pgward::shard_map::{HospitalId, ShardMap};

/// Text as a file may hold it; what is not UTF-8 is refused before these readers.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A configuration that is taken is one that can be used.
pub fn run_config(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match Config::parse("pgward.toml", text) {
        Ok(config) => {
            let seconds = [
                config.listen.client_login_timeout,
                config.pool.query_wait_timeout,
                config.pool.server_lifetime,
                config.pool.server_idle_timeout,
                config.pool.server_connect_timeout,
                config.pool.server_login_retry,
                config.pool.cancel_wait_timeout,
            ];
            for value in seconds {
                // What is not a duration panics, and so would pgward.
                let _ = std::time::Duration::from_secs_f64(value);
            }
            assert!(config.listen.max_client_conn > 0 && config.pool.default_pool_size > 0);
        }
        Err(problems) => assert!(!problems.to_string().is_empty(), "refused without a word"),
    }
}

/// A map that is taken sends every id to one shard that exists.
pub fn run_shard_map(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match ShardMap::parse("map.toml", text) {
        Ok(map) => {
            assert!(!map.shards().is_empty() && map.modulus > 0);
            for bucket in 0..map.modulus {
                let owner = map.owner(bucket).expect("an owner");
                assert!(map.shard(owner).is_some(), "bucket {bucket} is of no shard");
            }
            for n in [0, 1, 41, u128::from(u64::MAX), u128::MAX] {
                let id = HospitalId::from_binary(&n.to_be_bytes()).expect("sixteen bytes");
                if let Ok(shard) = map.locate(id) {
                    assert!(map.shard(shard).is_some());
                }
            }
            assert!(map.diff(&map).is_empty(), "differs from itself");
        }
        Err(problems) => assert!(!problems.to_string().is_empty(), "refused without a word"),
    }
}

/// A users file that is taken has users that can be asked for a proof.
pub fn run_users(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let secret = |source: Source<'_>| match source {
        Source::Env(name) => Ok(name.to_owned()),
        Source::File(_) => Err("can't be read".to_owned()),
    };
    for auth_type in [AuthType::Trust, AuthType::ScramSha256] {
        let auth = Auth { auth_type, scram_iterations: 1, ..Auth::default() };
        match Users::parse("users.toml", text, &auth, [7; 32], &secret) {
            Ok(users) => {
                for user in users.iter().take(4) {
                    assert!(!user.name.is_empty());
                    let _ = users.verifier(&user.name, Some(user));
                }
            }
            Err(problems) => {
                let told = problems.to_string();
                assert!(!told.is_empty(), "refused without a word");
            }
        }
    }
}
