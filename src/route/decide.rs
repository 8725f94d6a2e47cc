//! `decide`: the order in which the rules apply.
//!
//! First what may run at all (problems), then the hospital (keys, hint, session, transaction, login
//! must agree), then the place (shard and role). Refusals that compare hospitals come before the
//! look-up in the map, so that nobody learns which hospitals exist. Nothing is allocated on the
//! way to `Ok`.

use super::{
    Block, Bound, CrossHospital, GuardMode, Hospitals, Refusal, Role, Route, SessionView, Values,
    keys, refusals,
};
use crate::shard_map::{HospitalId, ShardId, ShardMap};
use crate::sql::{
    Access, Analysis, CopyIn, Effect, Pin, Problem, ProblemKind, ShardedUse, Statement,
};

/// Decides where one request goes: a Query with all its statements, or one Bind.
///
/// After `Ok(Route::One { hospital, .. })` in a transaction the caller sets [`SessionView::transaction`] to it.
/// A [`Route::Any`] in a block runs by itself, outside the transaction, and binds nothing. Where a
/// request was let through although it has [`Statement::problems`], it may have changed settings
/// unseen: the caller resets its server afterwards.
pub fn decide(
    analysis: &Analysis,
    values: &dyn Values,
    session: &SessionView<'_>,
    map: &ShardMap,
) -> Result<Route, Refusal> {
    let policy = Policy::new(session, map);
    let asked = policy.gather(&analysis.statements, values)?;
    let hospital = policy.hospital(&asked, values)?;
    policy.place(&asked, hospital)
}

/// What [`decide`] refuses whatever the values are, for a text that does not run yet.
pub fn admit(
    analysis: &Analysis,
    session: &SessionView<'_>,
    map: &ShardMap,
) -> Result<(), Refusal> {
    let policy = Policy::new(session, map);
    let mut problems = analysis.statements.iter().flat_map(|statement| &statement.problems);
    problems.try_for_each(|problem| policy.admit(problem))
}

/// Hospitals named so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    None,
    One(HospitalId),
    Many,
}

impl Named {
    #[inline]
    fn add(&mut self, hospital: HospitalId) {
        *self = match *self {
            Self::None => Self::One(hospital),
            Self::One(known) if known == hospital => return,
            Self::One(_) | Self::Many => Self::Many,
        };
    }
}

/// What the statements of one request ask for, together.
struct Asked<'a> {
    /// Hospitals that keys name.
    named: Named,
    /// A sharded relation without a key.
    keyless: Option<&'a ShardedUse>,
    /// Has an answer or effect of its own on each shard.
    per_shard: Option<&'a str>,
    /// Not proven free of effects: the first reason.
    write: Option<&'a str>,
    /// Only the primary's answer will do.
    is_primary_only: bool,
    /// Something runs in the transaction's snapshot (not only SHOW, SET and the like).
    has_query: bool,
    /// Touches a sharded relation.
    is_sharded: bool,
    /// A COPY into a sharded relation: each of its rows must be of the request's hospital.
    copy_in: Option<&'a CopyIn>,
}

/// The rules as they are for this session and map.
struct Policy<'a> {
    session: &'a SessionView<'a>,
    map: &'a ShardMap,
    /// The map's shard, if it has but one.
    only_shard: Option<ShardId>,
    /// A hospital fills in where the statement has no key.
    fills_in: bool,
    /// One shard, guard `route`, a login for any hospital: nothing to guard.
    is_open: bool,
}

impl<'a> Policy<'a> {
    fn new(session: &'a SessionView<'a>, map: &'a ShardMap) -> Self {
        let only_shard = match map.shards() {
            [shard] => Some(shard.id),
            _ => None,
        };
        let fills_in = match session.guard {
            GuardMode::Route => true,
            // `rls` does not start yet; were it to come here, the stricter rule holds.
            GuardMode::Strict | GuardMode::Rls => false,
        };
        let is_open =
            only_shard.is_some() && fills_in && session.rights.hospitals == Hospitals::Any;
        Self { session, map, only_shard, fills_in, is_open }
    }

    /// Sums up the statements; refuses those that may not run at all.
    fn gather(
        &self,
        statements: &'a [Statement],
        values: &dyn Values,
    ) -> Result<Asked<'a>, Refusal> {
        let mut asked = Asked {
            named: Named::None,
            keyless: None,
            per_shard: None,
            write: None,
            is_primary_only: false,
            has_query: false,
            is_sharded: false,
            copy_in: None,
        };
        for statement in statements {
            for problem in &statement.problems {
                self.admit(problem)?;
                // Not classified, or reads what each shard holds of its own: never on a replica.
                asked.write.get_or_insert(&problem.subject);
                if matches!(problem.kind, ProblemKind::ReadsUnkeyed | ProblemKind::Unknown) {
                    asked.per_shard.get_or_insert(&problem.subject);
                }
            }
            if let Some(what) = &statement.per_shard {
                asked.per_shard.get_or_insert(what);
                asked.write.get_or_insert(what);
            }
            match (lasting_effect(&statement.effect), &statement.access) {
                // SHOW too: clients ask for in_hot_standby and the like to find the primary. What
                // `set_config` writes is the setting.
                (Lasting::InSession, _) => asked.is_primary_only = true,
                (Lasting::OnServer(why), _) => {
                    asked.has_query = true;
                    asked.write.get_or_insert(why);
                    asked.per_shard.get_or_insert(why);
                }
                (Lasting::Nothing, access) => {
                    asked.has_query = true;
                    if let Access::Write(why) = access {
                        asked.write.get_or_insert(why);
                    }
                }
            }
            if let Some(copy) = &statement.copy_in {
                // The session looks at its rows, one COPY at a time.
                asked.is_sharded = true;
                asked.copy_in = Some(copy);
                if statements.len() > 1 && !self.is_open {
                    return Err(refusals::unsupported(
                        "COPY FROM together with other statements in one query string",
                        "Send it as a query of its own.",
                    ));
                }
                continue;
            }
            for used in &statement.sharded {
                asked.is_sharded = true;
                self.gather_keys(used, statement, values, &mut asked)?;
            }
        }
        Ok(asked)
    }

    fn gather_keys(
        &self,
        used: &'a ShardedUse,
        statement: &Statement,
        values: &dyn Values,
        asked: &mut Asked<'a>,
    ) -> Result<(), Refusal> {
        let mut has_key = false;
        let mut has_null = false;
        for key in &used.keys {
            keys::read(*key, values, |value| match value {
                Some(hospital) => {
                    has_key = true;
                    asked.named.add(hospital);
                }
                None => has_null = true,
            })?;
        }
        // A row of an INSERT that has NULL for its hospital would be lost among another's.
        if has_null && has_key && !self.is_open && matches!(statement.access, Access::Write(_)) {
            return Err(refusals::null_hospital(&used.relation, &used.column));
        }
        if !has_key {
            asked.keyless.get_or_insert(used);
        }
        Ok(())
    }

    /// Refuses for `problem`, unless this login and guard may do it all the same.
    fn admit(&self, problem: &Problem) -> Result<(), Refusal> {
        let Problem { kind, subject, hint } = problem;
        match kind {
            ProblemKind::Undeclared | ProblemKind::Unsupported | ProblemKind::Unknown
                if self.is_open =>
            {
                Ok(())
            }
            ProblemKind::Unknown if self.session.has_temporary(subject) => Ok(()),
            ProblemKind::Unknown if !hint.is_empty() => {
                Err(refusals::unsupported(&format!("a change of table \"{subject}\""), hint))
            }
            ProblemKind::ReferenceWrite if self.only_shard.is_some() => Ok(()),
            ProblemKind::Undeclared | ProblemKind::Unknown => {
                Err(refusals::undeclared_table(subject))
            }
            ProblemKind::ReferenceWrite => Err(refusals::reference_write(subject, hint)),
            ProblemKind::Unsupported => Err(refusals::unsupported(subject, hint)),
            ProblemKind::ReadsUnkeyed
                if self.fills_in || self.session.rights.cross_hospital > CrossHospital::None =>
            {
                Ok(())
            }
            ProblemKind::ReadsUnkeyed => Err(refusals::reads_unkeyed(subject, hint)),
        }
    }

    /// The hospital that the request belongs to; `None`: any would do, or all that the one shard has.
    fn hospital(
        &self,
        asked: &Asked<'_>,
        values: &dyn Values,
    ) -> Result<Option<HospitalId>, Refusal> {
        let session = self.session;
        let hint = match values.hint() {
            Ok(None) => None,
            Ok(Some(text)) => Some(HospitalId::parse(text).ok_or_else(bad_hint)?),
            Err(()) => return Err(refusals::hint_differs()),
        };
        let bound = session.transaction.and_then(|bound| bound.hospital);
        // A login that is free to cross does so only where nothing ties it to one hospital.
        let is_untied = session.rights.hospitals == Hospitals::Any
            && session.hospital.is_none()
            && hint.is_none();
        let is_crossing = is_untied && self.may_cross(asked);
        let is_free = self.only_shard.is_some() && is_untied && (self.is_open || is_crossing);

        let named = match asked.named {
            Named::None => hint,
            Named::One(hospital) if hint.is_some_and(|hint| hint != hospital) => {
                return Err(refusals::hint_differs());
            }
            Named::One(hospital) => Some(hospital),
            Named::Many if is_free => return Ok(None),
            Named::Many if is_crossing && bound.is_none() => {
                return Err(refusals::scatter_not_yet("Its keys name more than one hospital"));
            }
            Named::Many => return Err(refusals::two_hospitals()),
        };
        let hospital = self.agree(named, bound, is_free)?;
        if let (Some(copy), None) = (asked.copy_in, hospital)
            && !(self.is_open && is_untied)
        {
            return Err(refusals::copy_needs_hospital(&copy.relation));
        }
        let Some(keyless) = asked.keyless else { return Ok(hospital) };
        let of_session = hint.or(session.hospital).or(self.login_hospital());
        match of_session {
            Some(_) if self.fills_in => Ok(hospital),
            None if is_free => Ok(None),
            None if is_crossing && bound.is_none() => Err(refusals::scatter_not_yet(&format!(
                "Sharded table \"{}\" has no key, so all hospitals are meant",
                keyless.relation
            ))),
            _ if self.fills_in => {
                Err(refusals::missing_hospital_or_session(&keyless.relation, &keyless.column))
            }
            _ => Err(refusals::missing_hospital(&keyless.relation, &keyless.column)),
        }
    }

    /// What statement or hint name, the session's, the login's and the transaction's must be one.
    fn agree(
        &self,
        named: Option<HospitalId>,
        bound: Option<HospitalId>,
        is_free: bool,
    ) -> Result<Option<HospitalId>, Refusal> {
        let chosen = self.session.hospital;
        for hospital in [named, chosen].into_iter().flatten() {
            if !self.may_reach(hospital) {
                return Err(refusals::login_may_not_reach());
            }
        }
        if let (Some(named), Some(chosen)) = (named, chosen)
            && named != chosen
        {
            return Err(refusals::session_may_not_reach());
        }
        let hospital = named.or(chosen).or_else(|| self.login_hospital());
        match (hospital, bound) {
            (Some(hospital), Some(bound)) if hospital != bound => match is_free {
                true => Ok(None),
                false => Err(refusals::other_hospital_in_transaction()),
            },
            _ => Ok(hospital.or(bound)),
        }
    }

    #[inline]
    fn may_reach(&self, hospital: HospitalId) -> bool {
        match &self.session.rights.hospitals {
            Hospitals::Any => true,
            Hospitals::Only(list) => list.contains(&hospital),
        }
    }

    /// The hospital that the login is bound to.
    fn login_hospital(&self) -> Option<HospitalId> {
        match &self.session.rights.hospitals {
            Hospitals::Only(list) => match list.as_slice() {
                [hospital] => Some(*hospital),
                _ => None,
            },
            Hospitals::Any => None,
        }
    }

    fn may_cross(&self, asked: &Asked<'_>) -> bool {
        let needed = if asked.write.is_some() { CrossHospital::Write } else { CrossHospital::Read };
        self.session.rights.cross_hospital >= needed
    }

    /// Shard and role, once the hospital is settled.
    fn place(&self, asked: &Asked<'_>, hospital: Option<HospitalId>) -> Result<Route, Refusal> {
        let role = self.role(asked);
        if let Some(bound) = self.session.transaction {
            return self.place_bound(bound, role, hospital);
        }
        if let Some(pinned) = self.session.pinned {
            return self.place_pinned(pinned, hospital);
        }
        if let Some(hospital) = hospital {
            let shard = self.map.locate(hospital).map_err(|_| refusals::unknown_hospital())?;
            return Ok(Route::One { hospital: Some(hospital), shard, role });
        }
        if let Some(shard) = self.only_shard {
            return Ok(Route::One { hospital: None, shard, role });
        }
        // From here on nothing names a shard: only what any shard answers alike may pass.
        if asked.is_sharded {
            return Err(refusals::internal());
        }
        if let Some(what) = asked.per_shard {
            return Err(refusals::per_shard_needs_hospital(what));
        }
        match (self.session.block, asked.write) {
            (Block::Snapshot { .. }, _) if asked.has_query => {
                Err(refusals::snapshot_needs_hospital())
            }
            (Block::None, _) | (_, None) => Ok(Route::Any { role }),
            (_, Some(why)) => Err(refusals::effect_needs_hospital(why)),
        }
    }

    /// The transaction stays where it is. Its server keeps its role: a write in a READ ONLY block on a
    /// replica gets the server's own 25006, which is what a primary would say. Only in a batch
    /// outside a block, where a read went first, does a write ask for the primary: the caller ends
    /// the batch on the replica or refuses.
    fn place_bound(
        &self,
        bound: Bound,
        role: Role,
        hospital: Option<HospitalId>,
    ) -> Result<Route, Refusal> {
        if let Some(hospital) = hospital
            && bound.hospital != Some(hospital)
        {
            let shard = self.map.locate(hospital).map_err(|_| refusals::unknown_hospital())?;
            if shard != bound.shard {
                return Err(refusals::other_hospital_in_transaction());
            }
        }
        let role = match self.session.block {
            Block::None if role == Role::Primary => Role::Primary,
            _ => bound.role,
        };
        Ok(Route::One { hospital, shard: bound.shard, role })
    }

    /// A session stays on the server that it keeps, and with the hospital of what it keeps there.
    fn place_pinned(&self, pinned: Bound, hospital: Option<HospitalId>) -> Result<Route, Refusal> {
        if let Some(hospital) = hospital {
            let shard = self.map.locate(hospital).map_err(|_| refusals::unknown_hospital())?;
            let is_other = pinned.hospital.is_some_and(|kept| kept != hospital);
            if shard != pinned.shard || (is_other && !self.is_open) {
                return Err(refusals::pinned_elsewhere());
            }
        }
        let hospital = hospital.or(pinned.hospital);
        Ok(Route::One { hospital, shard: pinned.shard, role: pinned.role })
    }

    fn role(&self, asked: &Asked<'_>) -> Role {
        let block_allows = matches!(
            self.session.block,
            Block::None
                | Block::ReadOnly
                | Block::Snapshot { read_only: true, serializable: false }
        );
        match block_allows && asked.write.is_none() && !asked.is_primary_only {
            true => Role::Replica,
            false => Role::Primary,
        }
    }
}

/// Where the trace of an [`Effect`] stays.
enum Lasting {
    Nothing,
    /// The session keeps track of it and brings it to each server.
    InSession,
    /// On the server that ran it; says what.
    OnServer(&'static str),
}

#[inline]
fn lasting_effect(effect: &Effect) -> Lasting {
    match effect {
        Effect::None => Lasting::Nothing,
        Effect::Transaction(_)
        | Effect::Set(_)
        | Effect::Reset(_)
        | Effect::ResetAll
        | Effect::Show(_)
        | Effect::Deallocate(_)
        | Effect::Prepare(_)
        // Of a server that has nothing to end, any will say so.
        | Effect::Unpin => Lasting::InSession,
        Effect::Discard(_) => Lasting::OnServer("DISCARD"),
        Effect::Pin(Pin::Listen) => Lasting::OnServer("LISTEN"),
        Effect::Pin(Pin::TempTable) => Lasting::OnServer("a temporary table"),
        Effect::Pin(Pin::AdvisoryLock) => Lasting::OnServer("an advisory lock"),
        Effect::Pin(Pin::HoldCursor) => Lasting::OnServer("a cursor WITH HOLD"),
        Effect::Pin(Pin::Load) => Lasting::OnServer("LOAD"),
        Effect::Ddl => Lasting::OnServer("DDL"),
        Effect::Opaque => Lasting::OnServer("a statement that may change settings"),
    }
}

#[cold]
fn bad_hint() -> Refusal {
    refusals::not_a_uuid("the comment's hospital_id")
}
