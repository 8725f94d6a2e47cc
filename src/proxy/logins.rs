//! Connections that have not logged in: how many there may be, by address and in total.
//!
//! What a stranger may cost is bounded here, before a task or a buffer is made for it: a login in
//! progress holds one message of at most 10,000 bytes, and ends with `client_login_timeout`. A
//! connection that turns out to be a cancel gives its place back (`cancels` has a budget of its own).
//! Owned by `proxy`; knows no socket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::config::Listen;

/// The log has one line of refusals in this time, however many there are.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// `[listen] max_logins_per_address` and `max_logins`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub per_address: usize,
    pub total: usize,
}

impl From<&Listen> for Limits {
    fn from(listen: &Listen) -> Self {
        Self { per_address: listen.max_logins_per_address, total: listen.max_logins }
    }
}

/// All connections that are logging in.
#[derive(Debug, Default)]
pub(super) struct Logins {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_network: HashMap<Option<IpAddr>, usize, foldhash::quality::RandomState>,
    total: usize,
    refused: u64,
    told_at: Option<Instant>,
}

/// The place of one of them.
#[derive(Debug)]
pub(super) struct Slot {
    logins: Arc<Logins>,
    network: Option<IpAddr>,
}

impl Logins {
    /// A place for a connection from `address` (`None`: from this machine), if there is one.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        limits: Limits,
        now: Instant,
    ) -> Option<Slot> {
        let network = address.map(network);
        let mut counts = self.lock();
        if !counts.has_room(network, limits) {
            counts.on_refusal(now);
            return None;
        }
        *counts.by_network.entry(network).or_default() += 1;
        counts.total += 1;
        Some(Slot { logins: self.clone(), network })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Counts {
    /// The last quarter is for those who have no login under way, so that it takes many addresses
    /// and not much patience to keep everybody out.
    fn has_room(&self, network: Option<IpAddr>, limits: Limits) -> bool {
        let own = self.by_network.get(&network).copied().unwrap_or_default();
        let common = limits.total - limits.total / 4;
        own < limits.per_address && self.total < limits.total && (own == 0 || self.total < common)
    }

    fn on_refusal(&mut self, now: Instant) {
        self.refused += 1;
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY) {
            return;
        }
        self.told_at = Some(now);
        tracing::warn!(refused = self.refused, under_way = self.total, "too many logins at once");
        self.refused = 0;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.logins.lock();
        counts.total -= 1;
        if let Some(count) = counts.by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.by_network.remove(&self.network);
            }
        }
    }
}

/// Who is one: an IPv4 address, or the half of an IPv6 address that a site has for itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(logins: &Arc<Logins>, address: &str, limits: Limits) -> Option<Slot> {
        logins.enter(Some(address.parse().unwrap()), limits, Instant::now())
    }

    #[test]
    fn logins_are_bounded_by_address_and_in_total() {
        let logins = Arc::<Logins>::default();
        let limits = Limits { per_address: 3, total: 8 };
        let many = |address: &str| -> Vec<Slot> {
            std::iter::from_fn(|| enter(&logins, address, limits)).collect()
        };
        let (a, b) = (many("10.0.0.1"), many("10.0.0.2"));
        assert_eq!((a.len(), b.len()), (3, 3));
        // The rest is for newcomers, one each.
        let c = many("10.0.0.3");
        let d = many("10.0.0.4");
        assert_eq!((c.len(), d.len()), (1, 1));
        assert!(enter(&logins, "10.0.0.5", limits).is_none(), "full");
        assert!(logins.enter(None, limits, Instant::now()).is_none(), "full");
        drop(a);
        assert!(enter(&logins, "10.0.0.5", limits).is_some());
        drop((b, c, d));
        assert!(logins.lock().by_network.is_empty() && logins.lock().total == 0);
    }

    #[test]
    fn a_site_is_one_address() {
        let logins = Arc::<Logins>::default();
        let limits = Limits { per_address: 1, total: 100 };
        let _one = enter(&logins, "2001:db8:1:2::1", limits).unwrap();
        assert!(enter(&logins, "2001:db8:1:2:ffff::1", limits).is_none());
        let _two = enter(&logins, "2001:db8:1:3::1", limits).unwrap();
        let _three = enter(&logins, "::ffff:10.0.0.1", limits).unwrap();
        assert!(enter(&logins, "10.0.0.1", limits).is_none());
    }
}
