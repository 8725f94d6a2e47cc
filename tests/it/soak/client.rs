//! One client: sends requests to pgward, and once it knows what became of them to the oracle, whose
//! answers must be the same. It cancels and vanishes by the dice, and finds out what is unknown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use uuid::Uuid;

use super::requests::{Names, Request};
use super::statements::everything;
use super::tally::{self, Tally};
use super::wire::{Answer, Wire};
use super::world::{Hospital, SHARDS, Scene, World, cluster_of, database};
use crate::support::raw::{message, query};
use crate::support::{Dice, PATIENCE};

/// One in so many conversations ends with the client's leaving amid it.
const VANISHES: usize = 250;
/// One in so many is cancelled, and of those that are slow one in two.
const CANCELS: usize = 40;
/// After a client has vanished and its session has ended, for what a server may still have of it.
const REST: Duration = Duration::from_millis(500);

/// Attempts to end a failed transaction.
const ROLLBACKS_MAX: usize = 3;

/// A client of pgward, with its session of the oracle.
pub struct Client {
    pub world: Arc<World>,
    pub scene: Arc<Scene>,
    pub dice: Dice,
    ward: Wire,
    twin: Wire,
    /// Transaction status of both.
    pub status: u8,
    twin_status: u8,
    pub names: Names,
    /// Its connections so far.
    pub sessions: u64,
    /// An error came in the last conversation.
    pub has_failed: bool,
    /// What `pgward.hospital_id` says.
    pub bound: Option<Uuid>,
    cancel: Option<JoinHandle<()>>,
    /// Conversations that its last cancel may still hit.
    cancel_reach: u8,
    /// Its transaction's server is lost.
    pub is_lost: bool,
    /// It has left, and not come again yet.
    is_gone: bool,
    /// When its last conversation began.
    sent_at: Instant,
    /// Hospitals of the conversation with an outcome that was unknown.
    unsure: BTreeSet<usize>,
    pub tally: Tally,
}

impl Client {
    pub async fn new(world: Arc<World>, scene: Arc<Scene>, dice: Dice) -> Self {
        let ward = Wire::login(scene.ward.port, "hospital", "app").await.expect("a login");
        let twin = Wire::login(world.oracle, "oracle", "app").await.expect("the oracle");
        Self {
            world,
            scene,
            dice,
            ward,
            twin,
            status: b'I',
            twin_status: b'I',
            names: Names::default(),
            sessions: 0,
            has_failed: false,
            bound: None,
            cancel: None,
            cancel_reach: 0,
            is_lost: false,
            is_gone: false,
            sent_at: Instant::now(),
            unsure: BTreeSet::new(),
            tally: Tally::default(),
        }
    }

    /// Sends requests at once, and has their answers checked one after the other. More than one,
    /// only outside a transaction.
    pub async fn run(
        &mut self,
        hospitals: &mut [Hospital],
        requests: &[Request],
    ) -> Result<(), String> {
        if self.cancel.as_ref().is_some_and(|cancel| !cancel.is_finished()) {
            self.cancel_reach = 2;
        } else {
            self.cancel_reach = self.cancel_reach.saturating_sub(1);
        }
        let is_slow = requests.iter().any(|request| request.is_slow);
        if self.dice.one_in(if is_slow { 2 } else { CANCELS }) {
            let millis = self.dice.below(if is_slow { 40 } else { 6 }) as u64;
            self.cancel = Some(tokio::spawn(self.ward.cancel_after(Duration::from_millis(millis))));
            self.cancel_reach = 2;
            self.tally.add(tally::FAULTS, "cancels", 1);
        }
        let vanishes = self.dice.one_in(VANISHES);
        self.sent_at = Instant::now();
        let answers = match vanishes {
            true => self.vanish(requests).await,
            false => self.converse(requests).await,
        };
        let mut before = self.status;
        self.has_failed = false;
        for (request, answer) in requests.iter().zip(&answers) {
            let hospital = &mut hospitals[request.at];
            let settled = self.settle(hospital, request, before, answer).await;
            settled.map_err(|told| failure(&told, request, requests))?;
            before = self.status;
        }
        if vanishes || answers.len() < requests.len() {
            let unanswered = &requests[answers.len()..];
            if !vanishes {
                // Only where a server died amid a row does pgward end a connection.
                let excuse =
                    |request: &Request| self.is_disturbed(&hospitals[request.at], request, "");
                if !unanswered.iter().any(excuse) {
                    return Err(format!("the connection ended in {}", unanswered[0].told));
                }
                self.tally.add(tally::SEEN, "connection ended", 1);
            }
            let settled = self.on_gone(hospitals, unanswered, before).await;
            settled.map_err(|told| failure(&told, &unanswered[0], requests))?;
        }
        for at in std::mem::take(&mut self.unsure) {
            let checked = self.check_everything(&mut hospitals[at]).await;
            checked.map_err(|told| failure(&told, &requests[0], requests))?;
        }
        Ok(())
    }

    async fn converse(&mut self, requests: &[Request]) -> Vec<Answer> {
        let bytes: Vec<u8> = requests.iter().flat_map(|request| request.bytes.clone()).collect();
        let mut answers = Vec::new();
        if self.ward.send(&bytes).await.is_err() {
            return answers;
        }
        while answers.len() < requests.len() {
            match self.ward.answer().await {
                Ok(answer) => answers.push(answer),
                Err(_) => break,
            }
        }
        answers
    }

    /// Leaves somewhere on the way; the answers that came whole before.
    async fn vanish(&mut self, requests: &[Request]) -> Vec<Answer> {
        let bytes: Vec<u8> = requests.iter().flat_map(|request| request.bytes.clone()).collect();
        let mut answers = vec![Answer::default()];
        let how = match self.dice.below(3) {
            0 => {
                let _ = self.ward.send(&bytes[..self.dice.below(bytes.len())]).await;
                "amid a request"
            }
            1 => {
                let _ = self.ward.send(&bytes).await;
                tokio::time::sleep(Duration::from_millis(self.dice.below(5) as u64)).await;
                "before its answer"
            }
            _ => {
                let _ = self.ward.send(&bytes).await;
                for _ in 0..self.dice.below(12) {
                    if answers.len() > requests.len() {
                        break;
                    }
                    let Some(message) = self.ward.message().await else { break };
                    let is_end = message.tag == b'Z';
                    answers.last_mut().expect("one").messages.push(message);
                    if is_end {
                        answers.push(Answer::default());
                    }
                }
                "amid its answer"
            }
        };
        self.ward.leave();
        self.is_gone = true;
        self.tally.add(tally::FAULTS, format!("clients vanished {how}"), 1);
        answers.pop();
        answers
    }

    /// An answer has come: it is an excused error, a refusal that had to come, or the oracle's.
    async fn settle(
        &mut self,
        hospital: &mut Hospital,
        request: &Request,
        before: u8,
        answer: &Answer,
    ) -> Result<(), String> {
        let code = answer.code();
        self.status = answer.status();
        self.world.statements.fetch_add(request.kinds.len() as u64, Ordering::Relaxed);
        let told = answer.error().map(|error| String::from_utf8_lossy(&error.body).into_owned());
        let told = told.unwrap_or_default().replace('\0', " ");
        hospital.note(format!("{} -> {} {told}", request.told, char::from(self.status)));
        if !code.is_empty() {
            self.names.doubt(&request.touches);
            self.has_failed = true;
        }
        if matches!(code, "40001" | "08007" | "57P03" | "57014") {
            if !self.is_excused(hospital, request, code, &told) {
                return Err(format!("nothing explains {told}"));
            }
            let is_alone = code == "57P03" && !self.is_disturbed(hospital, request, &told);
            let name = if is_alone { "57P03 with no fault near" } else { code };
            self.tally.add(tally::SEEN, name, 1);
            if code == "08007" {
                // What only locks has no outcome. To look at its rows now would be too early: a
                // later part of its pipeline may have written, and is not on the oracle yet.
                if request.is_write || before != b'I' {
                    self.resolve(hospital, request, before).await?;
                }
                self.unsure.insert(request.at);
            }
            self.is_lost |= code == "40001" && self.status == b'E';
            return self.align(before).await;
        }
        if let Some(expected) = request.refused {
            let status = if before == b'I' { b'I' } else { b'E' };
            if (code, self.status) != (expected, status) {
                return Err(format!("{expected} expected, and not {told:?}"));
            }
            for kind in &request.kinds {
                self.tally.add(tally::REFUSED, *kind, 1);
            }
            return self.align(before).await;
        }
        self.compare(request, answer, &told).await
    }

    fn is_excused(&self, hospital: &Hospital, request: &Request, code: &str, told: &str) -> bool {
        match code {
            "57014" if !told.contains("query_wait_timeout") => self.cancel_reach > 0,
            // On a machine too busy for its probes a primary is not known to be one. Nothing has
            // run then; it is counted.
            "57P03" => true,
            _ => self.is_disturbed(hospital, request, told),
        }
    }

    /// Whether a fault explains what was `told`: one of the hospital's shard. What has no hospital
    /// may have run anywhere: one of the shard that the error names.
    fn is_disturbed(&self, hospital: &Hospital, request: &Request, told: &str) -> bool {
        let mut words = told.split(|c: char| !c.is_ascii_alphanumeric());
        let named = words.find(|word| *word == "shard").and_then(|_| words.next()?.parse().ok());
        let excuse = |shard| self.world.disturbances.excuse(shard, self.sent_at);
        match named {
            Some(shard) if request.has_hospital => shard == hospital.shard && excuse(shard),
            Some(shard) => excuse(shard),
            None if request.has_hospital => excuse(hospital.shard),
            None => (0..SHARDS).any(excuse),
        }
    }

    async fn compare(
        &mut self,
        request: &Request,
        answer: &Answer,
        told: &str,
    ) -> Result<(), String> {
        let twin = self.ask_twin(&request.bytes).await?;
        let (mut ours, mut theirs) =
            (answer.told(&request.is_ordered), twin.told(&request.is_ordered));
        if matches!(answer.code(), "42P05" | "26000" | "34000" | "25P02") {
            // Where pgward sees by itself what is wrong, it refuses the batch as a whole.
            for told in [&mut ours, &mut theirs] {
                told.retain(|line| line.starts_with(['E', 'Z']));
            }
        }
        if ours != theirs {
            let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            let show = |told: &[String]| told[at..(at + 6).min(told.len())].join("\n  ");
            return Err(format!(
                "not the oracle's answer, from message {at} on:\n  {}\n{told}\nbut\n  {}",
                show(&ours),
                show(&theirs)
            ));
        }
        for kind in &request.kinds {
            self.tally.add(tally::STATEMENTS, *kind, 1);
        }
        self.tally.add(tally::COMPARED, "messages", ours.len() as u64);
        self.tally.add(tally::COMPARED, "rows", answer.row_count() as u64);
        if !answer.code().is_empty() {
            self.tally.add(tally::ERRORS, answer.code(), 1);
        }
        Ok(())
    }

    async fn ask_twin(&mut self, bytes: &[u8]) -> Result<Answer, String> {
        self.twin.send(bytes).await.map_err(|error| format!("the oracle: {error}"))?;
        let answer = self.twin.answer().await.map_err(|_| "the oracle ended".to_owned())?;
        self.twin_status = answer.status();
        Ok(answer)
    }

    async fn tell_twin(&mut self, sql: &str) -> Result<(), String> {
        self.ask_twin(&query(sql)).await.map(drop)
    }

    /// What pgward refused or lost has not run on the oracle: brings it to the same status.
    async fn align(&mut self, before: u8) -> Result<(), String> {
        match (self.status, self.twin_status) {
            (b'I', b'I') | (b'E', b'E') => Ok(()),
            (b'I', _) => self.tell_twin("ROLLBACK").await,
            (b'E', b'T') => self.tell_twin("SELECT 1 / 0").await,
            // It began its block itself.
            (b'E', b'I') if before == b'I' => self.roll_back().await,
            (ours, theirs) => Err(format!(
                "status {} after an error, where the oracle's is {}",
                char::from(ours),
                char::from(theirs)
            )),
        }
    }

    /// Ends a transaction that has failed, in one of the ways in which applications do.
    pub async fn roll_back(&mut self) -> Result<(), String> {
        let sql = if self.dice.one_in(3) { "COMMIT" } else { "ROLLBACK" };
        self.is_lost = false;
        if self.is_gone {
            return Ok(());
        }
        let mut answer = Answer::default();
        for _ in 0..ROLLBACKS_MAX {
            let sent = self.ward.send(&query(sql)).await;
            answer = match (sent, self.ward.answer().await) {
                (Ok(()), Ok(answer)) => answer,
                _ => return Err(format!("the connection ended in {sql} of a failed transaction")),
            };
            // It may be cancelled, or be told first that the server is gone. A COMMIT whose outcome
            // is not known has ended the block all the same.
            if answer.code().is_empty() || answer.status() == b'I' {
                break;
            }
        }
        self.status = answer.status();
        let is_ended = answer.has_tag("ROLLBACK") || answer.code() == "08007";
        if !is_ended || self.status != b'I' {
            let told = answer.told(&[]);
            return Err(format!("{sql} of a failed transaction: {told:?}"));
        }
        if self.twin_status != b'I' {
            self.tell_twin("ROLLBACK").await?;
        }
        Ok(())
    }

    /// The connection has ended: finds out what became of what has no answer, and comes again.
    async fn on_gone(
        &mut self,
        hospitals: &mut [Hospital],
        unanswered: &[Request],
        before: u8,
    ) -> Result<(), String> {
        let port = self.ward.port;
        self.ward = Wire::login(self.scene.ward.port, "hospital", "app")
            .await
            .map_err(|error| format!("a new login: {error}"))?;
        self.status = b'I';
        (self.is_lost, self.is_gone) = (false, false);
        for hospital in hospitals.iter_mut() {
            hospital.note("(the connection ended)".to_owned());
        }
        self.wait_until_gone(port).await?;
        tokio::time::sleep(REST).await;
        let mut resolved = BTreeSet::new();
        for request in unanswered {
            if request.is_write || request.ends {
                self.resolve(&mut hospitals[request.at], request, before).await?;
                resolved.insert(request.at);
            }
        }
        if self.twin_status != b'I' {
            self.tell_twin("ROLLBACK").await?;
        }
        self.tell_twin("DISCARD ALL").await?;
        self.names = Names::default();
        self.bound = None;
        self.sessions += 1;
        for (at, hospital) in hospitals.iter_mut().enumerate() {
            if resolved.contains(&at) || unanswered.iter().any(|request| request.at == at) {
                let (truth, twin) = (self.truth(hospital).await?, self.twin_rows(hospital).await?);
                if truth != twin {
                    return Err(format!("a vanished client left behind {}", differ(&truth, &twin)));
                }
                self.check_everything(hospital).await?;
            }
        }
        Ok(())
    }

    /// Whether `request` took effect, by what the shard itself has; the oracle follows.
    async fn resolve(
        &mut self,
        hospital: &mut Hospital,
        request: &Request,
        before: u8,
    ) -> Result<(), String> {
        let truth = self.truth(hospital).await?;
        let is_in_block = before != b'I';
        let stands = match is_in_block {
            // What the block did is on the oracle already, if it did not fail.
            true if self.twin_status == b'T' => Some(self.twin_rows(hospital).await?),
            _ => None,
        };
        if is_in_block {
            let is_done = request.ends && stands.as_ref() == Some(&truth);
            self.tell_twin(if is_done { "COMMIT" } else { "ROLLBACK" }).await?;
            self.tally.add(tally::UNKNOWN, if is_done { "committed" } else { "rolled back" }, 1);
        } else if self.twin_rows(hospital).await? == truth {
            self.tally.add(tally::UNKNOWN, "not applied, or no change", 1);
            hospital.note("(it was not applied)".to_owned());
            return Ok(());
        } else {
            self.ask_twin(&request.bytes).await?;
            self.tally.add(tally::UNKNOWN, "applied", 1);
            hospital.note("(it was applied)".to_owned());
        }
        let twin = self.twin_rows(hospital).await?;
        match twin == truth {
            true => Ok(()),
            false => Err(format!("neither done nor undone: {}", differ(&truth, &twin))),
        }
    }

    /// The rows of a hospital on its shard's primary, past pgward, when all that was running there
    /// has ended.
    async fn truth(&self, hospital: &Hospital) -> Result<Vec<String>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.look(hospital).await {
                Ok(rows) => return Ok(rows),
                Err(told) if Instant::now() > deadline => return Err(told),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn look(&self, hospital: &Hospital) -> Result<Vec<String>, String> {
        let port = self.world.primaries[cluster_of(hospital.shard)];
        let wire = Wire::login(port, &database(hospital.shard), "postgres").await;
        let mut wire = wire.map_err(|error| error.to_string())?;
        let begun = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
        let begun = wire.rows(begun).await?.join("");
        let ended = format!(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= '{begun}'::bigint"
        );
        while wire.rows(&ended).await? != ["t"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        wire.rows(&all_of(hospital)).await
    }

    async fn twin_rows(&mut self, hospital: &Hospital) -> Result<Vec<String>, String> {
        self.twin.rows(&all_of(hospital)).await.map_err(|error| format!("the oracle: {error}"))
    }

    /// A read through pgward of all that a hospital has, after what was unknown: never stale.
    async fn check_everything(&mut self, hospital: &mut Hospital) -> Result<(), String> {
        if self.is_gone || self.status != b'I' || self.twin_status != b'I' {
            return Ok(());
        }
        let twin = self.twin_rows(hospital).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ward.rows(&all_of(hospital)).await {
                Ok(rows) if rows == twin => break,
                Ok(rows) => return Err(format!("a stale read: {}", differ(&rows, &twin))),
                Err(told) => {
                    let is_fault = ["40001", "57P03", "57014"].iter().any(|c| told.starts_with(c));
                    if !is_fault || Instant::now() > deadline {
                        return Err(told);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.tally.add(tally::COMPARED, "whole hospitals after an unknown outcome", 1);
        self.tally.add(tally::COMPARED, "rows", twin.len() as u64);
        Ok(())
    }

    /// Returns when pgward's session of a client that left has ended.
    async fn wait_until_gone(&self, port: u16) -> Result<(), String> {
        let console = Wire::login(self.scene.ward.port, "pgward", "admin").await;
        let mut console = console.map_err(|error| error.to_string())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let clients = console.rows("SHOW CLIENTS").await?;
            let is_it = |row: &String| row.split('|').nth(6) == Some(&port.to_string());
            if !clients.iter().any(is_it) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("the session of a client that vanished does not end".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Statements that may be there or not are taken away.
    pub async fn close_doubtful(&mut self, hospitals: &mut [Hospital]) -> Result<(), String> {
        self.names.barred.clear();
        if self.names.doubtful.is_empty() {
            return Ok(());
        }
        let mut request = Request::new(0);
        for name in std::mem::take(&mut self.names.doubtful) {
            request.close(name, &mut self.names);
        }
        self.run(hospitals, &[request.synced()]).await
    }

    /// Leaves as applications do, and comes again.
    pub async fn reconnect(&mut self) -> Result<(), String> {
        let _ = self.ward.send(&message(b'X', &[])).await;
        let ward = Wire::login(self.scene.ward.port, "hospital", "app").await;
        self.ward = ward.map_err(|error| format!("a new login: {error}"))?;
        self.tell_twin("DISCARD ALL").await?;
        self.names = Names::default();
        self.bound = None;
        self.sessions += 1;
        self.tally.add(tally::FAULTS, "clients came anew", 1);
        Ok(())
    }
}

fn all_of(hospital: &Hospital) -> String {
    everything(hospital).sql.replace("$1", &format!("'{}'", hospital.id))
}

/// What was wrong after `request`, and what else had been sent with it.
fn failure(told: &str, request: &Request, requests: &[Request]) -> String {
    let mut told = format!("{told}\nafter {}", request.told);
    for other in requests.iter().filter(|_| requests.len() > 1) {
        told += &format!("\n  in one go: {}", other.told);
    }
    told
}

/// The first rows that differ.
fn differ(ours: &[String], theirs: &[String]) -> String {
    let only = |a: &[String], b: &[String]| -> String {
        let rows = a.iter().filter(|row| !b.contains(row)).take(5);
        rows.cloned().collect::<Vec<_>>().join("\n    ")
    };
    format!(
        "rows differ:\n    {}\n  but the oracle has\n    {}",
        only(ours, theirs),
        only(theirs, ours)
    )
}
