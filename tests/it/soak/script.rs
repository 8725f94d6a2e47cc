//! What a client does next, by the dice: statements alone and together, blocks with savepoints,
//! pipelines over hospitals, portals in portions, what must be refused, what a driver gets wrong.

use super::client::Client;
use super::requests::Request;
use super::statements::{self, Statement};
use super::tally;
use super::world::Hospital;

const BEGINS: [&str; 6] = [
    "BEGIN",
    "BEGIN",
    "START TRANSACTION",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "BEGIN READ ONLY",
    "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
];

impl Client {
    /// Works until it is over; `Err`: what was wrong, and what had been done.
    pub async fn live(mut self) -> Result<(), String> {
        while !self.world.is_over() {
            let mut hospitals = self.scene.take(&mut self.dice);
            if hospitals.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                continue;
            }
            for _ in 0..1 + self.dice.below(8) {
                if let Err(told) = self.unit(&mut hospitals).await {
                    let done: Vec<String> = hospitals.iter().map(Hospital::told).collect();
                    return Err(format!("{}: {told}\n{}", self.scene.name, done.join("\n")));
                }
            }
            self.scene.give_back(hospitals);
            let tally = std::mem::take(&mut self.tally);
            self.world.tally.lock().expect("no panic holds it").take_in(tally);
        }
        Ok(())
    }

    async fn unit(&mut self, hospitals: &mut [Hospital]) -> Result<(), String> {
        if self.dice.one_in(150) {
            self.reconnect().await?;
        }
        self.close_doubtful(hospitals).await?;
        let at = self.dice.below(hospitals.len());
        if self.scene.is_route {
            self.bind_session(hospitals, at).await?;
        }
        match self.dice.below(18) {
            0..=5 => {
                let request = self.request(hospitals, at, 1);
                self.run(hospitals, &[request]).await?;
            }
            6..=8 => {
                let count = 2 + self.dice.below(3);
                let request = self.request(hospitals, at, count);
                self.run(hospitals, &[request]).await?;
            }
            9 | 10 => self.pipeline(hospitals, at).await?,
            11..=14 => self.block(hospitals, at).await?,
            15 => self.block_in_a_batch(hospitals, at).await?,
            16 => {
                let all = statements::everything(&hospitals[at]);
                let request = self.encode(at, &[all]);
                self.run(hospitals, &[request]).await?;
                self.tally.add(tally::COMPARED, "whole hospitals", 1);
            }
            _ => {
                let request = self.mistake(at);
                self.run(hospitals, &[request]).await?;
            }
        }
        match self.status {
            b'I' => Ok(()),
            b'E' => self.roll_back().await,
            other => Err(format!("status {} after a unit", char::from(other))),
        }
    }

    /// One statement for a hospital.
    fn statement(&mut self, hospital: &mut Hospital) -> Statement {
        let dice = &mut self.dice;
        if self.bound == Some(hospital.id) && dice.one_in(2) {
            return statements::keyless(hospital, dice);
        }
        match dice.below(20) {
            0..=9 => statements::read(hospital, dice),
            10..=18 => statements::write(hospital, dice),
            _ => statements::slow(hospital, dice),
        }
    }

    /// A statement that pgward must refuse here.
    fn refused(&mut self, hospital: &Hospital) -> Statement {
        let others: Vec<_> = self.scene.all.iter().filter(|id| **id != hospital.id).collect();
        let other = *others[self.dice.below(others.len())];
        if self.status == b'T' || self.bound.is_some() {
            // Another hospital than the block's, or than the session's.
            let mut statement = statements::read(&hospital.stranger(other), &mut self.dice);
            let code = if self.bound.is_some() { "42501" } else { "PW003" };
            statement.refused = Some(code);
            return statement;
        }
        statements::refused(hospital, other, &mut self.dice)
    }

    /// `count` statements for one hospital that run as one, sometimes with one to be refused.
    fn request(&mut self, hospitals: &mut [Hospital], at: usize, count: usize) -> Request {
        let mut all: Vec<Statement> =
            (0..count).map(|_| self.statement(&mut hospitals[at])).collect();
        let is_known = self.status == b'I' && self.bound.is_none();
        if is_known && self.dice.one_in(12) {
            // What comes before it must not fail by itself, and must be undone.
            for statement in &mut all {
                while !matches!(statement.kind, "update" | "point read" | "page") {
                    *statement = match self.dice.one_in(2) {
                        true => statements::read(&hospitals[at], &mut self.dice),
                        false => statements::write(&mut hospitals[at], &mut self.dice),
                    };
                }
            }
            *all.last_mut().expect("one") = self.refused(&hospitals[at]);
        } else if count == 1 && self.bound == Some(hospitals[at].id) && self.dice.one_in(20) {
            all = vec![self.refused(&hospitals[at])];
        } else if is_known && self.scene.is_route && count == 1 && self.dice.one_in(4) {
            return self.hinted(&mut hospitals[at], at);
        }
        self.encode(at, &all)
    }

    /// A statement without a key, and its hospital in a comment.
    fn hinted(&mut self, hospital: &mut Hospital, at: usize) -> Request {
        let mut statement = statements::keyless(hospital, &mut self.dice);
        statement.kind = "hinted";
        let hint = format!("/* hospital_id='{}' */", hospital.id);
        statement.sql = match self.dice.one_in(2) {
            true => format!("{hint} {}", statement.sql),
            false => format!("{} {hint}", statement.sql),
        };
        Request::simple(at, &[statement], &mut self.dice)
    }

    fn encode(&mut self, at: usize, all: &[Statement]) -> Request {
        if self.dice.one_in(3) {
            return Request::simple(at, all, &mut self.dice);
        }
        let mut request = Request::new(at);
        for statement in all {
            request.add(statement, &mut self.names, &mut self.dice);
            if self.dice.one_in(40) && !request.touches.contains(&statement.kind) {
                request.close(statement.kind, &mut self.names);
            }
        }
        request.synced()
    }

    /// Several synced parts in one go, to several hospitals. One part at most writes for each, so
    /// that what is unknown can be told by its rows.
    async fn pipeline(&mut self, hospitals: &mut [Hospital], at: usize) -> Result<(), String> {
        let mut parts = Vec::new();
        let mut written = vec![false; hospitals.len()];
        for _ in 0..2 + self.dice.below(5) {
            let at = match self.bound {
                Some(_) => at,
                None => self.dice.below(hospitals.len()),
            };
            let statement = match written[at] {
                true => statements::read(&hospitals[at], &mut self.dice),
                false => self.statement(&mut hospitals[at]),
            };
            written[at] |= statement.is_write;
            parts.push(self.part(at, statement));
        }
        if self.bound.is_none() && self.dice.one_in(4) {
            let statement = self.refused(&hospitals[at]);
            let part = self.part(at, statement);
            parts.push(part);
        }
        self.tally.add(tally::COMPARED, "pipelines", 1);
        self.run(hospitals, &parts).await
    }

    /// What one part prepares is no other's: it may fail.
    fn part(&mut self, at: usize, statement: Statement) -> Request {
        let part = self.encode(at, &[statement]);
        self.names.barred.extend(&part.touches);
        part
    }

    async fn block(&mut self, hospitals: &mut [Hospital], at: usize) -> Result<(), String> {
        let begin = self.dice.pick(&BEGINS);
        self.run(hospitals, &[Request::control(at, "begin", begin)]).await?;
        let mut savepoints = 0;
        for _ in 0..1 + self.dice.below(6) {
            // It may have vanished, or its server may be gone.
            if self.status == b'I' || self.is_lost {
                break;
            }
            let has_failed = self.status == b'E';
            let request = match self.dice.below(12) {
                0 | 1 if !has_failed => {
                    savepoints += 1;
                    let sql = format!("SAVEPOINT s{savepoints}");
                    Request::control(at, "savepoint", &sql)
                }
                2 | 3 if savepoints > 0 => {
                    let sql = format!("ROLLBACK TO s{savepoints}");
                    Request::control(at, "rollback to", &sql)
                }
                4 if savepoints > 0 && !has_failed => {
                    savepoints -= 1;
                    let sql = format!("RELEASE s{}", savepoints + 1);
                    Request::control(at, "release", &sql)
                }
                5 => {
                    self.portal(hospitals, at).await?;
                    continue;
                }
                6 if !has_failed => {
                    // Where nothing has a hospital yet, another one's statement is not refused.
                    let first = statements::read(&hospitals[at], &mut self.dice);
                    let first = self.encode(at, &[first]);
                    self.run(hospitals, &[first]).await?;
                    if self.status != b'T' {
                        continue;
                    }
                    let refused = self.refused(&hospitals[at]);
                    self.encode(at, &[refused])
                }
                _ => {
                    let count = 1 + self.dice.below(2);
                    let all: Vec<Statement> =
                        (0..count).map(|_| self.statement(&mut hospitals[at])).collect();
                    self.encode(at, &all)
                }
            };
            self.run(hospitals, &[request]).await?;
        }
        if self.status == b'I' {
            return Ok(());
        }
        self.tally.add(tally::COMPARED, "transactions", 1);
        if self.is_lost {
            return self.roll_back().await;
        }
        let end = self.dice.pick(&["COMMIT", "COMMIT", "COMMIT", "END", "ROLLBACK"]);
        self.run(hospitals, &[Request::control(at, "end", end)]).await
    }

    /// A portal whose rows are taken in portions, over several Syncs.
    async fn portal(&mut self, hospitals: &mut [Hospital], at: usize) -> Result<(), String> {
        let mut bytes = Request::new(at);
        let sql = format!(
            "SELECT id, status, patient_id FROM visits WHERE hospital_id = '{}' ORDER BY id",
            hospitals[at].id
        );
        bytes.push(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
        bytes.push(b'B', &[b"c\0\0\0\0\0\0\0\0"]);
        let mut first = true;
        for rows in [2, 1 + self.dice.below(9) as i32, 0] {
            let mut request = if first { bytes.clone() } else { Request::new(at) };
            first = false;
            request.push(b'E', &[b"c\0", &rows.to_be_bytes()]);
            if rows == 0 {
                request.push(b'C', &[b"Pc\0"]);
            }
            request.kinds.push("portal in portions");
            request.is_ordered.push(true);
            request.told = format!("[{rows} of portal c: {sql}]");
            self.run(hospitals, &[request.synced()]).await?;
            if self.status != b'T' {
                return Ok(());
            }
        }
        Ok(())
    }

    /// BEGIN, statements and COMMIT before one Sync.
    async fn block_in_a_batch(
        &mut self,
        hospitals: &mut [Hospital],
        at: usize,
    ) -> Result<(), String> {
        let mut request = Request::new(at);
        let control = |request: &mut Request, sql: &str| {
            request.push(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
            request.push(b'B', &[b"\0\0\0\0\0\0\0\0"]);
            request.push(b'E', &[b"\0\0\0\0\0"]);
            request.told += &format!("[{sql}] ");
            request.is_ordered.push(true);
            request.kinds.push("control in a batch");
        };
        control(&mut request, "BEGIN");
        for _ in 0..1 + self.dice.below(3) {
            let statement = self.statement(&mut hospitals[at]);
            request.add(&statement, &mut self.names, &mut self.dice);
        }
        control(&mut request, "COMMIT");
        request.ends = true;
        self.run(hospitals, &[request.synced()]).await
    }

    /// What a driver gets wrong: names that are taken or unknown, and nothing at all.
    fn mistake(&mut self, at: usize) -> Request {
        let mut request = Request::new(at);
        let what = match self.dice.below(5) {
            0 => {
                request.push(b'B', &[b"\0nobody\0\0\0\0\0\0\0"]);
                request.push(b'E', &[b"\0\0\0\0\0"]);
                "unknown statement"
            }
            1 => {
                request.push(b'E', &[b"nowhere\0\0\0\0\0"]);
                "unknown portal"
            }
            2 => {
                request.push(b'P', &[b"taken\0SELECT 1\0\0\0"]);
                request.push(b'P', &[b"taken\0SELECT 2\0\0\0"]);
                "name that is taken"
            }
            3 => {
                request.push(b'P', &[b"\0\0\0\0"]);
                request.push(b'B', &[b"\0\0\0\0\0\0\0\0"]);
                request.push(b'E', &[b"\0\0\0\0\0"]);
                "empty statement"
            }
            _ => {
                request.push(b'C', &[b"Snobody\0"]);
                request.push(b'D', &[b"Snobody\0"]);
                "describe of an unknown statement"
            }
        };
        if what == "name that is taken" {
            request.touches.push("taken");
        }
        request.kinds.push(what);
        request.told = format!("[{what}]");
        request.synced()
    }

    /// The session's hospital: set, set otherwise, or taken away.
    async fn bind_session(&mut self, hospitals: &mut [Hospital], at: usize) -> Result<(), String> {
        let id = hospitals[at].id;
        if self.bound == Some(id) {
            return Ok(());
        }
        let request = match self.dice.below(3) {
            0 if self.bound.is_none() => return Ok(()),
            0 => Request::control(at, "reset hospital", "RESET pgward.hospital_id"),
            1 => {
                let sql = format!("SET pgward.hospital_id = '{id}'");
                Request::control(at, "set hospital", &sql)
            }
            _ => {
                let mut request = Request::new(at);
                let text = id.to_string();
                let set = b"\0SELECT set_config('pgward.hospital_id', $1, false)\0\0\0";
                request.push(b'P', &[set]);
                let length = (text.len() as u32).to_be_bytes();
                let value = [b"\0\0\0\0\0\x01", &length[..], text.as_bytes(), b"\0\0"].concat();
                request.push(b'B', &[&value]);
                request.push(b'E', &[b"\0\0\0\0\0"]);
                request.kinds.push("set_config of the hospital");
                request.told = format!("[set_config of {id}]");
                request.synced()
            }
        };
        let bound = (request.kinds[0] != "reset hospital").then_some(id);
        let session = self.sessions;
        self.run(hospitals, &[request]).await?;
        // A session that has come anew has none, whatever came of this.
        if self.sessions == session && !self.has_failed {
            self.bound = bound;
        }
        Ok(())
    }
}
