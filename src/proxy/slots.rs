//! Places of clients: how many of a database and of a user may be connected at once.
//!
//! A place is taken when a login is proven, and given back when the client's socket has been
//! closed: one that hangs there still holds what the limit is meant to protect.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::route::{Refusal, refusals};

/// Places taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    databases: HashMap<Arc<str>, usize>,
    users: HashMap<Arc<str>, usize>,
}

/// Most clients at once; 0: as many as there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// `max_db_client_connections`.
    pub of_database: usize,
    /// `max_user_client_connections`.
    pub of_user: usize,
}

/// The place of one client; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    database: Arc<str>,
    user: Arc<str>,
}

impl Slots {
    /// A place for one more client of `user` in `database`.
    pub(super) fn take(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        most: Most,
    ) -> Result<Slot, Refusal> {
        let mut taken = self.taken.lock().unwrap_or_else(|p| p.into_inner());
        let is_full = |count: Option<&usize>, most: usize| {
            most > 0 && count.copied().unwrap_or_default() >= most
        };
        if is_full(taken.databases.get(database), most.of_database) {
            return Err(refusals::too_many_clients_of("max_db_client_connections"));
        }
        if is_full(taken.users.get(user), most.of_user) {
            return Err(refusals::too_many_clients_of("max_user_client_connections"));
        }
        let database = count_up(&mut taken.databases, database);
        let user = count_up(&mut taken.users, user);
        Ok(Slot { slots: self.clone(), database, user })
    }

    #[cfg(test)]
    pub(super) fn of_user(&self, user: &str) -> usize {
        let taken = self.taken.lock().unwrap_or_else(|p| p.into_inner());
        taken.users.get(user).copied().unwrap_or_default()
    }
}

/// One more of `name`; its name, shared by all that have it.
fn count_up(counts: &mut HashMap<Arc<str>, usize>, name: &str) -> Arc<str> {
    let name = match counts.get_key_value(name) {
        Some((shared, _)) => shared.clone(),
        None => name.into(),
    };
    *counts.entry(name.clone()).or_default() += 1;
    name
}

fn count_down(counts: &mut HashMap<Arc<str>, usize>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(|p| p.into_inner());
        count_down(&mut taken.databases, &self.database);
        count_down(&mut taken.users, &self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_places_come_back() {
        let slots = Arc::<Slots>::default();
        let take = |user, of_database, of_user| {
            slots.take("hospital", user, Most { of_database, of_user }).map_err(|r| r.message)
        };
        let a = take("a", 3, 2).expect("the first");
        let _b = take("a", 3, 2).expect("the second");
        let full = |key: &str| format!("client connections exceeded ({key})");
        assert_eq!(take("a", 3, 2).err(), Some(full("max_user_client_connections")));
        // The limit of another user is another one, and 0 is none.
        let _c = take("b", 3, 0).expect("another user");
        assert_eq!(take("b", 3, 0).err(), Some(full("max_db_client_connections")));
        drop(a);
        assert_eq!(slots.of_user("a"), 1);
        let _d = take("a", 3, 2).expect("a place came back");
        let _e = take("a", 0, 0).expect("no limits");
    }
}
