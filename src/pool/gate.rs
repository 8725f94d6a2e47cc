//! The fair gate in front of a pool: its permits are the pool's limit.
//!
//! bb8 alone lets a newcomer overtake a woken waiter and can't be resized, so requests queue
//! here, first come, first served, with one exception: while others wait, a hospital that holds
//! its share of the permits is passed over. Where the first has waited for long, the reserve is
//! open to it. Pure bookkeeping under one short lock; no I/O.
//!
//! ```text
//!   enter ─▶ free permit and nobody waits? ─ yes ─▶ Permit ─▶ drop ─▶ next waiter, or free
//!                        └─ no ─▶ queue (bounded) ─▶ Permit
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::shard_map::HospitalId;

/// Waiters looked at for one whose hospital is below its share, before the first is taken.
const FAIRNESS_SCAN_MAX: usize = 256;

/// A fair, resizable counting gate.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limit: usize,
    share: usize,
    waiting_max: usize,
    /// Permits beyond `limit`, once the first in the queue has waited for `reserve_after`.
    reserve: usize,
    reserve_after: Duration,
    taken: usize,
    queue: VecDeque<Waiter>,
    held: HashMap<HospitalId, usize, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct Waiter {
    hospital: Option<HospitalId>,
    since: Instant,
    /// Carries the permit itself: one that is granted to a waiter who has just gone drops with
    /// the channel and so goes on to the next.
    grant: oneshot::Sender<Permit>,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait for this pool")]
pub struct Full;

/// The right to hold one server; dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    hospital: Option<HospitalId>,
}

/// A permit, or a place in the queue.
#[derive(Debug)]
pub enum Entry {
    /// At once.
    Now(Permit),
    /// When it arrives. Cancel safety: dropping the receiver gives the place up.
    Later(oneshot::Receiver<Permit>),
}

/// Numbers for SHOW POOLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Permits taken.
    pub taken: usize,
    /// Requests waiting.
    pub waiting: usize,
    /// How long the first of them has waited, in microseconds.
    pub longest_wait_us: u64,
}

impl Gate {
    /// A gate of `limit` permits, of which one hospital may hold `share` (0 to 1) while others
    /// wait; at most `waiting_max` wait.
    pub fn new(limit: usize, share: f64, waiting_max: usize) -> Arc<Self> {
        let gate = Arc::new(Self { state: Mutex::default() });
        gate.resize(limit, share, waiting_max);
        gate
    }

    /// Changes the limits; waiters that now fit go in.
    pub fn resize(self: &Arc<Self>, limit: usize, share: f64, waiting_max: usize) {
        let granted = {
            let mut state = self.lock();
            state.limit = limit;
            state.share = ((limit as f64 * share).ceil() as usize).max(1);
            state.waiting_max = waiting_max;
            state.grant()
        };
        self.hand_out(granted);
    }

    /// Permits beyond the limit for a queue whose first has waited for `after`; that one has to say
    /// so, by [`Self::on_reserve_due`].
    pub fn set_reserve(&self, size: usize, after: Duration) {
        let mut state = self.lock();
        (state.reserve, state.reserve_after) = (size, after);
    }

    /// A waiter has waited until the reserve is open.
    pub fn on_reserve_due(self: &Arc<Self>) {
        let granted = self.lock().grant();
        self.hand_out(granted);
    }

    /// Somebody waits.
    pub fn is_awaited(&self) -> bool {
        self.lock().queue.iter().any(|waiter| !waiter.grant.is_closed())
    }

    /// Asks for a permit for `hospital`.
    pub fn enter(self: &Arc<Self>, hospital: Option<HospitalId>) -> Result<Entry, Full> {
        let mut state = self.lock();
        if state.take_free(hospital) {
            return Ok(Entry::Now(Permit { gate: self.clone(), hospital }));
        }
        // Those who left the queue without a word make room before anybody is turned away.
        if state.queue.len() >= state.waiting_max {
            state.queue.retain(|waiter| !waiter.grant.is_closed());
        }
        if state.queue.len() >= state.waiting_max {
            return Err(Full);
        }
        let (grant, permit) = oneshot::channel();
        state.queue.push_back(Waiter { hospital, since: Instant::now(), grant });
        Ok(Entry::Later(permit))
    }

    /// A permit, if one is free and nobody waits.
    pub fn enter_now(self: &Arc<Self>, hospital: Option<HospitalId>) -> Option<Permit> {
        let is_free = self.lock().take_free(hospital);
        is_free.then(|| Permit { gate: self.clone(), hospital })
    }

    /// Numbers for SHOW POOLS.
    pub fn load(&self, now: Instant) -> Load {
        let state = self.lock();
        let mut waiting = state.queue.iter().filter(|waiter| !waiter.grant.is_closed()).peekable();
        let longest = waiting.peek().map_or(0, |w| now.duration_since(w.since).as_micros());
        Load { taken: state.taken, waiting: waiting.count(), longest_wait_us: longest as u64 }
    }

    fn leave(self: &Arc<Self>, hospital: Option<HospitalId>) {
        let granted = {
            let mut state = self.lock();
            state.give_back(hospital);
            state.grant()
        };
        self.hand_out(granted);
    }

    /// Outside the lock: a permit that nobody takes drops here and enters `leave` again.
    fn hand_out(self: &Arc<Self>, granted: Option<Waiter>) {
        let mut next = granted;
        while let Some(waiter) = next {
            let permit = Permit { gate: self.clone(), hospital: waiter.hospital };
            drop(waiter.grant.send(permit));
            next = self.lock().grant();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Permit {
    /// The gate that it is of.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl State {
    fn take(&mut self, hospital: Option<HospitalId>) {
        self.taken += 1;
        if let Some(hospital) = hospital {
            *self.held.entry(hospital).or_default() += 1;
        }
    }

    /// Takes a permit if one is free and nobody waits.
    fn take_free(&mut self, hospital: Option<HospitalId>) -> bool {
        let is_free = self.queue.is_empty() && self.taken < self.limit;
        if is_free {
            self.take(hospital);
        }
        is_free
    }

    fn give_back(&mut self, hospital: Option<HospitalId>) {
        self.taken -= 1;
        if let Some(hospital) = hospital
            && let Some(held) = self.held.get_mut(&hospital)
        {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&hospital);
            }
        }
    }

    /// Takes the next waiter off the queue, and a permit for it, if one is free.
    fn grant(&mut self) -> Option<Waiter> {
        while self.queue.front().is_some_and(|waiter| waiter.grant.is_closed()) {
            self.queue.pop_front();
        }
        if self.taken >= self.limit && !self.is_reserve_open() {
            return None;
        }
        let is_below_share = |waiter: &Waiter| {
            let held = waiter.hospital.and_then(|h| self.held.get(&h)).copied().unwrap_or(0);
            held < self.share && !waiter.grant.is_closed()
        };
        let index = self.queue.iter().take(FAIRNESS_SCAN_MAX).position(is_below_share).unwrap_or(0);
        let waiter = self.queue.remove(index)?;
        self.take(waiter.hospital);
        Some(waiter)
    }
}

impl State {
    fn is_reserve_open(&self) -> bool {
        let has_waited = |first: &Waiter| first.since.elapsed() >= self.reserve_after;
        self.reserve > 0
            && self.taken < self.limit.saturating_add(self.reserve)
            && self.queue.front().is_some_and(has_waited)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave(self.hospital);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hospital(n: u128) -> Option<HospitalId> {
        Some(HospitalId(uuid::Uuid::from_u128(n)))
    }

    fn now(entry: Result<Entry, Full>) -> Permit {
        match entry {
            Ok(Entry::Now(permit)) => permit,
            other => panic!("expected a permit, got {other:?}"),
        }
    }

    fn later(entry: Result<Entry, Full>) -> oneshot::Receiver<Permit> {
        match entry {
            Ok(Entry::Later(receiver)) => receiver,
            other => panic!("expected a place in the queue, got {other:?}"),
        }
    }

    #[test]
    fn first_come_first_served() {
        let gate = Gate::new(1, 1.0, 10);
        let held = now(gate.enter(None));
        let mut first = later(gate.enter(None));
        let mut second = later(gate.enter(None));
        drop(held);
        let permit = first.try_recv().expect("the first has it");
        assert!(second.try_recv().is_err());
        assert_eq!(gate.load(Instant::now()).waiting, 1);
        drop(permit);
        second.try_recv().expect("then the second");
    }

    #[test]
    fn a_hospital_at_its_share_is_passed_over_while_others_wait() {
        let gate = Gate::new(2, 0.5, 10);
        let noisy = [now(gate.enter(hospital(1))), now(gate.enter(hospital(1)))];
        let mut more = later(gate.enter(hospital(1)));
        let mut quiet = later(gate.enter(hospital(2)));
        let [one, two] = noisy;
        drop(one);
        let _held = quiet.try_recv().expect("the quiet hospital goes first");
        assert!(more.try_recv().is_err());
        drop(two);
        more.try_recv().expect("nobody else waits now");
    }

    #[test]
    fn a_waiter_that_left_neither_keeps_nor_loses_a_permit() {
        let gate = Gate::new(1, 1.0, 10);
        let held = now(gate.enter(None));
        drop(later(gate.enter(None)));
        let granted_then_gone = later(gate.enter(None));
        let mut last = later(gate.enter(None));
        drop(held);
        drop(granted_then_gone);
        last.try_recv().expect("the permit went on");
        assert_eq!(gate.load(Instant::now()), Load::default());
    }

    #[test]
    fn a_full_queue_refuses() {
        let gate = Gate::new(1, 1.0, 1);
        let _held = now(gate.enter(None));
        let _waiting = later(gate.enter(None));
        assert!(matches!(gate.enter(None), Err(Full)));
    }

    #[test]
    fn the_reserve_opens_for_a_queue_that_has_waited() {
        let gate = Gate::new(1, 1.0, 10);
        gate.set_reserve(1, Duration::from_secs(3600));
        let _held = now(gate.enter(None));
        let mut first = later(gate.enter(None));
        gate.on_reserve_due();
        assert!(first.try_recv().is_err(), "it has not waited for an hour");
        gate.set_reserve(1, Duration::ZERO);
        let mut second = later(gate.enter(None));
        gate.on_reserve_due();
        let reserve = first.try_recv().expect("the reserve");
        gate.on_reserve_due();
        assert!(second.try_recv().is_err(), "the reserve has one");
        drop(reserve);
        second.try_recv().expect("then it is the next one's");
    }

    #[test]
    fn a_raised_limit_lets_waiters_in() {
        let gate = Gate::new(1, 1.0, 10);
        let _held = now(gate.enter(None));
        let mut waiting = later(gate.enter(None));
        gate.resize(2, 1.0, 10);
        waiting.try_recv().expect("fits now");
    }
}
