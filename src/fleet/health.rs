//! What the answers of a shard's hosts prove: which host accepts writes, which replicas are fresh.
//!
//! Pure: time comes in as nanoseconds of the fleet's clock, answers as values. The two questions it
//! settles are the election of a primary (a host that says so itself, on a timeline not lower than
//! the last one) and the freshness rule: a replica is *fresh as of t* once its replayed LSN reaches
//! a sample of the primary whose question was sent after t. Owned by `ShardState`, fed by `monitor`.

use std::collections::VecDeque;

use crate::shard_map::HOSTS_MAX;

/// Samples of the primary that are kept per shard.
const SAMPLES_MAX: usize = 64;

/// What a host said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// `pg_is_in_recovery()`.
    pub is_in_recovery: bool,
    /// The timeline that it writes or replays.
    pub timeline: u32,
    /// In recovery the end of the last replayed record, else the end of the last inserted one.
    pub lsn: u64,
    /// `pg_control_system().system_identifier`: the same on a primary and its replicas.
    pub system: u64,
}

/// Why a shard has no primary although a host offers to be one, or why a host isn't used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// Two hosts accept writes on one timeline.
    TwoPrimaries,
    /// A host accepts writes on a timeline below the accepted one: an old primary came back.
    OldTimeline,
    /// A host belongs to another cluster than the primary: the map names a wrong address.
    ForeignHost,
}

/// The primary that was accepted last, whether or not it still answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Index of the host.
    pub host: usize,
    /// Its timeline when it last answered.
    pub timeline: u32,
    /// Its system identifier.
    pub system: u64,
}

/// What is known of one host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostHealth {
    /// The last answer, however old.
    pub last: Option<Answer>,
    /// When it came.
    pub answered_at: u64,
    /// Until when it counts; from then on the host is unknown.
    pub known_until: u64,
    /// It answered or failed to, at least once.
    pub was_asked: bool,
    /// Latest sending time of a primary's sample that this replica has reached; 0: none.
    pub fresh_as_of: u64,
}

/// What is known of one shard.
#[derive(Debug, Clone)]
pub struct ShardHealth {
    hosts: Vec<HostHealth>,
    accepted: Option<Accepted>,
    /// The accepted host answers now.
    primary: Option<usize>,
    alarm: Option<Alarm>,
    samples: Samples,
}

impl ShardHealth {
    /// A shard of `hosts` hosts that nobody has asked yet.
    pub fn new(hosts: usize) -> Self {
        Self {
            hosts: vec![HostHealth::default(); hosts.min(HOSTS_MAX)],
            accepted: None,
            primary: None,
            alarm: None,
            samples: Samples::default(),
        }
    }

    /// This shard under another list of hosts: `origin[new]` is a host's old index. What is known
    /// of hosts that stay is kept, the floor of timelines too.
    pub fn rearranged(&self, origin: &[Option<usize>]) -> Self {
        let mut next = Self::new(origin.len());
        for (host, old) in next.hosts.iter_mut().zip(origin) {
            if let Some(old) = old.and_then(|old| self.hosts.get(old)) {
                *host = *old;
            }
        }
        let moved = |old: usize| origin.iter().position(|o| *o == Some(old));
        if let Some(accepted) = self.accepted
            && let Some(host) = moved(accepted.host)
        {
            next.accepted = Some(Accepted { host, ..accepted });
            next.primary = self.primary.and_then(moved);
            next.samples = self.samples.clone();
        } else {
            next.hosts.iter_mut().for_each(|host| host.fresh_as_of = 0);
        }
        next.alarm = self.alarm;
        next
    }

    /// A host answered at `now` a question sent at `sent_at`; the answer counts until `known_until`.
    pub fn on_answer(
        &mut self,
        index: usize,
        answer: Answer,
        sent_at: u64,
        now: u64,
        known_until: u64,
    ) {
        let Some(host) = self.hosts.get_mut(index) else { return };
        if host.last.is_some_and(|last| !continues(&last, &answer)) {
            host.fresh_as_of = 0;
        }
        host.was_asked = true;
        host.last = Some(answer);
        host.answered_at = now;
        host.known_until = known_until;
        self.elect(now);
        if self.primary == Some(index) {
            self.samples.push(sent_at, answer.lsn);
        }
        self.advance();
    }

    /// A host did not answer, or something was seen that an answer can't explain: it is unknown.
    pub fn on_silence(&mut self, index: usize, now: u64) {
        let Some(host) = self.hosts.get_mut(index) else { return };
        host.was_asked = true;
        host.known_until = 0;
        self.elect(now);
    }

    /// The hosts, in the map's order.
    pub fn hosts(&self) -> &[HostHealth] {
        &self.hosts
    }

    /// The host that accepts writes, and until when that counts.
    pub fn primary(&self) -> Option<(usize, u64)> {
        self.primary.map(|index| (index, self.hosts[index].known_until))
    }

    /// The primary accepted last.
    pub fn accepted(&self) -> Option<Accepted> {
        self.accepted
    }

    /// What is wrong, if anything.
    pub fn alarm(&self) -> Option<Alarm> {
        self.alarm
    }

    /// Until when `index` may serve reads as a replica; 0: it may not.
    ///
    /// A shard whose primary was never seen has replicas of unproven origin: they count here, for
    /// reads that accept any replica, but none of them is ever fresh as of anything.
    pub fn replica_until(&self, index: usize) -> u64 {
        let host = &self.hosts[index];
        let is_replica = host.last.is_some_and(|answer| {
            answer.is_in_recovery && self.accepted.is_none_or(|primary| follows(&answer, &primary))
        });
        if is_replica { host.known_until } else { 0 }
    }

    /// Settles who is the primary. Everything that is fresh is so in the eyes of one primary on one
    /// timeline, so a change of either starts the samples anew.
    fn elect(&mut self, now: u64) {
        self.alarm = None;
        let elected = self.candidate(now);
        if let Some((index, answer)) = elected {
            let accepted =
                Accepted { host: index, timeline: answer.timeline, system: answer.system };
            if self.accepted != Some(accepted) {
                self.accepted = Some(accepted);
                self.samples = Samples::default();
                self.hosts.iter_mut().for_each(|host| host.fresh_as_of = 0);
            }
        }
        self.primary = elected.map(|(index, _)| index);
        if let Some(primary) = self.accepted {
            let is_foreign = |host: &HostHealth| {
                host.known_until > now
                    && host.last.is_some_and(|answer| answer.system != primary.system)
            };
            if self.alarm.is_none() && self.hosts.iter().any(is_foreign) {
                self.alarm = Some(Alarm::ForeignHost);
            }
        }
    }

    /// The one host that may be the primary, if there is one. Sets the alarm.
    fn candidate(&mut self, now: u64) -> Option<(usize, Answer)> {
        let writable: Vec<(usize, Answer)> = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.known_until > now)
            .filter_map(|(index, host)| Some((index, host.last?)))
            .filter(|(_, answer)| !answer.is_in_recovery)
            .collect();
        let (fit, unfit): (Vec<_>, Vec<_>) =
            writable.into_iter().partition(|(index, answer)| self.is_fit(*index, answer));
        let (_, first) = *fit.first().or(unfit.first())?;
        let system = self.accepted.map_or(first.system, |last| last.system);
        if unfit.iter().any(|(_, answer)| answer.system != system) {
            self.alarm = Some(Alarm::ForeignHost);
        } else if !unfit.is_empty() && self.accepted.is_some() {
            self.alarm = Some(Alarm::OldTimeline);
        }
        if fit.iter().any(|(_, answer)| answer.system != fit[0].1.system) {
            self.alarm = Some(Alarm::ForeignHost);
            return None;
        }
        let highest = fit.iter().map(|(_, answer)| answer.timeline).max()?;
        let (leaders, old): (Vec<_>, Vec<_>) =
            fit.into_iter().partition(|(_, answer)| answer.timeline == highest);
        if !old.is_empty() {
            self.alarm = Some(Alarm::OldTimeline);
        }
        if leaders.len() > 1 {
            self.alarm = Some(Alarm::TwoPrimaries);
            return None;
        }
        leaders.into_iter().next()
    }

    fn is_fit(&self, index: usize, answer: &Answer) -> bool {
        match self.accepted {
            // The first one: the map's primary; or another of its cluster, once every host was
            // asked, so that a wrong address in the map can't win by being fast.
            None if index == 0 => true,
            None => {
                self.hosts.iter().all(|host| host.was_asked)
                    && self.hosts[0].last.is_none_or(|first| first.system == answer.system)
            }
            Some(last) if answer.system == last.system => answer.timeline >= last.timeline,
            // A cluster made anew (an upgrade) at the address of the old one, or at the map's
            // primary, is the shard because the map says so; elsewhere it is somebody else's.
            Some(last) => index == last.host || index == 0,
        }
    }

    /// Raises `fresh_as_of` of every replica. A replica's last replayed LSN may reach a sample that
    /// was taken after it: replay never goes back, and on an idle shard both stand still.
    fn advance(&mut self) {
        let Some(primary) = self.accepted else { return };
        for host in &mut self.hosts {
            let Some(answer) = host.last.filter(|answer| answer.is_in_recovery) else { continue };
            if !follows(&answer, &primary) {
                host.fresh_as_of = 0;
            } else if let Some(sent_at) = self.samples.reached_by(answer.lsn) {
                host.fresh_as_of = host.fresh_as_of.max(sent_at);
            }
        }
    }
}

/// The replica is of the primary's cluster and timeline.
fn follows(replica: &Answer, primary: &Accepted) -> bool {
    replica.system == primary.system && replica.timeline == primary.timeline
}

/// `next` is the same history as `last`, further on; else the host was rebuilt or promoted.
fn continues(last: &Answer, next: &Answer) -> bool {
    last.system == next.system
        && last.is_in_recovery == next.is_in_recovery
        && last.timeline <= next.timeline
        && last.lsn <= next.lsn
}

/// Samples of a primary as (when asked, where its log ended), both rising.
#[derive(Debug, Clone, Default)]
struct Samples(VecDeque<(u64, u64)>);

impl Samples {
    /// Adds a sample. One with the LSN of the last replaces it: it was asked later and proves more.
    /// An LSN that fell means a crash lost what was never flushed, and no replica can have it.
    fn push(&mut self, sent_at: u64, lsn: u64) {
        match self.0.back_mut() {
            Some(last) if lsn == last.1 => {
                last.0 = last.0.max(sent_at);
                return;
            }
            Some(last) if lsn < last.1 => self.0.clear(),
            _ => {}
        }
        if self.0.len() == SAMPLES_MAX {
            // Thin out the older half, so that a replica far behind still finds a sample to reach.
            let mut position = 0;
            self.0.retain(|_| {
                position += 1;
                position > SAMPLES_MAX / 2 || position % 2 == 1
            });
        }
        self.0.push_back((sent_at, lsn));
    }

    /// Sending time of the latest sample at or before `lsn`.
    fn reached_by(&self, lsn: u64) -> Option<u64> {
        let count = self.0.partition_point(|sample| sample.1 <= lsn);
        count.checked_sub(1).map(|last| self.0[last].0)
    }
}

/// The end of the last record, for an insert position. After a record that ends with its page the
/// position is already behind the next page's header (24 bytes, 40 at the start of a segment), where
/// replay only arrives with the next record: an idle primary would never have a fresh replica [15].
pub fn end_of_records(insert: u64, block_bytes: u64, segment_bytes: u64) -> u64 {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    if segment_bytes > 0 && insert % segment_bytes == LONG_HEADER {
        insert - LONG_HEADER
    } else if block_bytes > 0
        && insert % block_bytes == SHORT_HEADER
        && insert % segment_bytes.max(1) != SHORT_HEADER
    {
        insert - SHORT_HEADER
    } else {
        insert
    }
}
