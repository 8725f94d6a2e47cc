//! Statements that are no query: what they do to the transaction, the session and the server.
//!
//! Settings are put as Postgres would store them (flatten_set_variable_args). What is not listed here is
//! refused.

use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes::{self, DiscardMode, TransactionStmtKind, VariableSetKind};
use pg_raw_parse::{ConstValue, Node};

use super::consts::type_oid;
use super::expr::{At, Term, qualified_name};
use super::{Walk, utility};
use crate::sql::execute::{EXECUTE, PREPARE};
use crate::sql::{
    Arg, Discard, Effect, Error, Execute, Isolation, Pin, Prepare, Setting, SettingValue,
    Temporary, Transaction, TransactionModes,
};

/// Hint for what changes the schema.
pub(super) const SHARD_SESSION: &str =
    "Run it on each shard with a login that has shard_access and options=-c pgward.shard=N.";
/// Settings whose values are lists of names, quoted where need be (GUC_LIST_QUOTE).
const LIST_SETTINGS: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
];
/// Settings that decide what later statements mean: their values must be known.
const MEANING_SETTINGS: [&str; 5] = [
    "client_encoding",
    "role",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
];

impl<'a> Walk<'a> {
    /// The statement itself; its name.
    pub(super) fn top(&mut self, node: Node<'a>) -> Result<&'static str, Error> {
        let place = self.facts.place(None);
        let at = At { scope: None, env: None, place };
        Ok(match node {
            Node::SelectStmt(select) => {
                self.set_config(select);
                self.query(node, at)?;
                if select.into_clause().is_some() { "SELECT INTO" } else { "SELECT" }
            }
            Node::InsertStmt(_) => {
                self.query(node, at)?;
                "INSERT"
            }
            Node::UpdateStmt(_) => {
                self.query(node, at)?;
                "UPDATE"
            }
            Node::DeleteStmt(_) => {
                self.query(node, at)?;
                "DELETE"
            }
            Node::MergeStmt(_) => {
                self.query(node, at)?;
                "MERGE"
            }
            Node::ExplainStmt(explain) => {
                for option in explain.options() {
                    self.expr(option.arg(), at)?;
                }
                self.found.is_deferred = true;
                self.top(explain.query())?;
                "EXPLAIN"
            }
            Node::DeclareCursorStmt(cursor) => self.declare_cursor(cursor)?,
            Node::TransactionStmt(transaction) => self.transaction(transaction),
            Node::VariableSetStmt(set) => self.set(set),
            Node::VariableShowStmt(show) => {
                self.found.effect = Effect::Show(lower(show.name()));
                "SHOW"
            }
            Node::ConstraintsSetStmt(_) => {
                self.found.effect = Effect::Transaction(Transaction::SetConstraints);
                "SET CONSTRAINTS"
            }
            Node::DeallocateStmt(deallocate) => {
                let name = deallocate.name().map(str::to_owned);
                self.found.effect = Effect::Deallocate(name.filter(|_| !deallocate.isall));
                "DEALLOCATE"
            }
            Node::DiscardStmt(discard) => {
                if discard.target == DiscardMode::DISCARD_TEMP {
                    self.found.temporary = Some(Box::new(Temporary::DropsAll));
                }
                self.found.effect = Effect::Discard(match discard.target {
                    DiscardMode::DISCARD_PLANS => Discard::Plans,
                    DiscardMode::DISCARD_SEQUENCES => Discard::Sequences,
                    DiscardMode::DISCARD_TEMP => Discard::Temp,
                    _ => Discard::All,
                });
                "DISCARD"
            }
            Node::PrepareStmt(prepare) => {
                let types = prepare.argtypes().into_iter().map(type_oid).collect();
                let name = owned(prepare.name());
                self.found.effect = Effect::Prepare(Box::new(Prepare { name, types }));
                // Until the session has looked at what is prepared.
                self.unsupported(PREPARE, "Send it as a query of its own.");
                "PREPARE"
            }
            Node::ExecuteStmt(execute) => {
                self.execute(execute, at)?;
                "EXECUTE"
            }
            Node::CreateStmt(made) => self.create_table(made, at)?,
            Node::CreateTableAsStmt(made) => self.create_table_as(made, at)?,
            // They mean something only where their cursor is, which needs an open transaction.
            Node::FetchStmt(fetch) => {
                if fetch.ismove {
                    "MOVE"
                } else {
                    "FETCH"
                }
            }
            Node::ClosePortalStmt(_) => {
                self.found.effect = Effect::Unpin;
                "CLOSE"
            }
            Node::NotifyStmt(_) => {
                self.is_per_shard("NOTIFY");
                "NOTIFY"
            }
            Node::ListenStmt(_) => {
                self.found.effect = Effect::Pin(Pin::Listen);
                self.is_per_shard("LISTEN");
                "LISTEN"
            }
            Node::UnlistenStmt(_) => {
                self.found.effect = Effect::Unpin;
                "UNLISTEN"
            }
            Node::LoadStmt(_) => {
                self.found.effect = Effect::Pin(Pin::Load);
                self.is_per_shard("LOAD");
                "LOAD"
            }
            Node::DoStmt(_) => {
                self.found.effect = Effect::Opaque;
                self.refuse("DO", SHARD_SESSION)
            }
            Node::CallStmt(_) => {
                self.found.effect = Effect::Opaque;
                self.refuse("CALL", "Call a function that safe_functions names, in a SELECT.")
            }
            Node::CopyStmt(copy) => self.copy(copy, at)?,
            Node::LockStmt(_) => self.refuse("LOCK TABLE", "Use SELECT ... FOR UPDATE."),
            other => match self.change_temporary(other, at)? {
                Some(command) => command,
                None => self.utility(other),
            },
        })
    }

    /// EXECUTE: its arguments are read as any expressions; what it runs is not known here.
    pub(super) fn execute(
        &mut self,
        execute: &'a nodes::ExecuteStmt,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        let mut args = Vec::new();
        for arg in execute.params().iter() {
            args.push(match self.expr(arg, at)? {
                Term::Const(value) => value.slot().map_or(Arg::Other, Arg::Slot),
                _ => Arg::Other,
            });
        }
        self.writes(EXECUTE);
        self.found.executes = Some(Box::new(Execute { name: owned(execute.name()), args }));
        // Until the session has said what the name stands for.
        self.unsupported(EXECUTE, "Send it as a query of its own.");
        Ok(())
    }

    /// A statement of the kinds that belong to migrations and upkeep.
    pub(super) fn utility(&mut self, node: Node<'a>) -> &'static str {
        if let Node::TruncateStmt(_) = node {
            return self.refuse("TRUNCATE TABLE", "Use DELETE with the key.");
        }
        let (command, is_ddl) = utility::command(node);
        if is_ddl {
            self.found.effect = match utility::is_temporary(node) {
                true => Effect::Pin(Pin::TempTable),
                false => Effect::Ddl,
            };
        }
        self.refuse(command, SHARD_SESSION)
    }

    fn refuse(&mut self, command: &'static str, hint: &'static str) -> &'static str {
        self.writes(command);
        self.unsupported(command, hint);
        command
    }

    fn declare_cursor(
        &mut self,
        cursor: &'a nodes::DeclareCursorStmt,
    ) -> Result<&'static str, Error> {
        /// CURSOR_OPT_HOLD of parsenodes.h.
        const HOLD: i32 = 0x20;
        self.found.is_deferred = true;
        self.top(cursor.query())?;
        if cursor.options & HOLD != 0 {
            self.found.effect = Effect::Pin(Pin::HoldCursor);
        }
        // Later FETCHes must find its server.
        self.found.per_shard.get_or_insert("DECLARE CURSOR".into());
        Ok("DECLARE CURSOR")
    }

    fn transaction(&mut self, statement: &'a nodes::TransactionStmt) -> &'static str {
        let chain = statement.chain;
        let savepoint = || owned(statement.savepoint_name());
        let (command, effect) = match statement.kind {
            TransactionStmtKind::TRANS_STMT_BEGIN => {
                ("BEGIN", Transaction::Begin(modes(statement.options())))
            }
            TransactionStmtKind::TRANS_STMT_START => {
                ("START TRANSACTION", Transaction::Begin(modes(statement.options())))
            }
            TransactionStmtKind::TRANS_STMT_COMMIT => ("COMMIT", Transaction::Commit { chain }),
            TransactionStmtKind::TRANS_STMT_ROLLBACK => {
                ("ROLLBACK", Transaction::Rollback { chain })
            }
            TransactionStmtKind::TRANS_STMT_SAVEPOINT => {
                ("SAVEPOINT", Transaction::Savepoint(savepoint()))
            }
            TransactionStmtKind::TRANS_STMT_RELEASE => {
                ("RELEASE", Transaction::Release(savepoint()))
            }
            TransactionStmtKind::TRANS_STMT_ROLLBACK_TO => {
                ("ROLLBACK", Transaction::RollbackTo(savepoint()))
            }
            TransactionStmtKind::TRANS_STMT_PREPARE => {
                return self.refuse("PREPARE TRANSACTION", "Use COMMIT.");
            }
            TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED => {
                return self.refuse("COMMIT PREPARED", SHARD_SESSION);
            }
            _ => return self.refuse("ROLLBACK PREPARED", SHARD_SESSION),
        };
        self.found.effect = Effect::Transaction(effect);
        command
    }

    fn set(&mut self, set: &'a nodes::VariableSetStmt) -> &'static str {
        let name = lower(set.name());
        let is_local = set.is_local;
        let setting = |value| Setting { name: name.clone(), value, is_local, from_function: false };
        self.found.effect = match set.kind {
            VariableSetKind::VAR_SET_VALUE => match flatten(&name, set.args()) {
                Some(text) => Effect::Set(vec![setting(SettingValue::Text(text))]),
                None => return self.refuse("SET with this value", "Write the value as a string."),
            },
            VariableSetKind::VAR_SET_DEFAULT if is_local => {
                Effect::Set(vec![setting(SettingValue::Default)])
            }
            VariableSetKind::VAR_SET_DEFAULT => Effect::Reset(name),
            VariableSetKind::VAR_RESET => {
                self.found.effect = Effect::Reset(name);
                return "RESET";
            }
            VariableSetKind::VAR_RESET_ALL => {
                self.found.effect = Effect::ResetAll;
                return "RESET";
            }
            VariableSetKind::VAR_SET_MULTI if name == "transaction" => {
                Effect::Transaction(Transaction::SetTransaction(modes(set.args())))
            }
            VariableSetKind::VAR_SET_MULTI if name == "session characteristics" => {
                Effect::Set(characteristics(modes(set.args())))
            }
            VariableSetKind::VAR_SET_MULTI => {
                return self.refuse("SET TRANSACTION SNAPSHOT", "Use one transaction.");
            }
            _ => return self.refuse("SET FROM CURRENT", "Write the value."),
        };
        "SET"
    }

    /// `SELECT set_config('name', value, local)`, with nothing that could keep it from being called once:
    /// also no function beside it, which may return no row at all.
    fn set_config(&mut self, select: &'a nodes::SelectStmt) {
        let is_plain = |target: &nodes::ResTarget| {
            let value = target.val();
            matches!(value, Node::A_Const(_) | Node::ParamRef(_))
                || matches!(value, Node::FuncCall(call) if is_set_config(call))
        };
        let is_bare = !self.found.is_deferred
            && select.target_list().into_iter().all(is_plain)
            && select.from_clause().is_empty()
            && select.group_clause().is_empty()
            && select.values_lists().is_empty()
            && select.larg().is_none()
            && select.with_clause().is_none()
            && select.distinct_clause().is_empty()
            && [
                select.where_clause(),
                select.having_clause(),
                select.limit_count(),
                select.limit_offset(),
            ]
            .iter()
            .all(|clause| matches!(clause, Node::None));
        if !is_bare {
            return;
        }
        let mut settings = Vec::new();
        for target in select.target_list() {
            let Node::FuncCall(call) = target.val() else { continue };
            if let Some(setting) = self.set_config_call(call) {
                self.found.seen_settings.push(call.location);
                settings.push(setting);
            }
        }
        if !settings.is_empty() {
            self.found.effect = Effect::Set(settings);
        }
    }

    /// Whether [`Self::set_config`] has taken note of this call.
    pub(super) fn is_setting_seen(&self, call: &nodes::FuncCall) -> bool {
        self.found.seen_settings.contains(&call.location)
    }

    fn set_config_call(&mut self, call: &'a nodes::FuncCall) -> Option<Setting> {
        use crate::sql::FunctionKind::BuiltinWrite;
        let (schema, name) = qualified_name(call.funcname())?;
        if name != "set_config"
            || !matches!(self.catalog.function(schema, name), BuiltinWrite(_))
            || call.over().is_some()
            || !matches!(call.agg_filter(), Node::None)
        {
            return None;
        }
        let args: Vec<Node<'a>> = call.args().iter().collect();
        let [Node::A_Const(name), value, is_local] = args.as_slice() else { return None };
        let ConstValue::String(name_value) = name.val()? else { return None };
        self.reads_value(name.location);
        let name = name_value.to_lowercase();
        let is_local = self.boolean(*is_local)?;
        let value = match value {
            Node::ParamRef(param) => SettingValue::Param(u16::try_from(param.number).ok()?),
            Node::A_Const(constant) => match (constant.val(), self.slot(constant.location)) {
                (Some(ConstValue::String(value)), Some((slot, _)))
                    if self.is_read_as(slot, value) =>
                {
                    SettingValue::Slot(slot)
                }
                _ => SettingValue::Computed,
            },
            _ => SettingValue::Computed,
        };
        if value == SettingValue::Computed && MEANING_SETTINGS.contains(&name.as_str()) {
            return None;
        }
        Some(Setting { name, value, is_local, from_function: true })
    }

    fn boolean(&mut self, node: Node<'a>) -> Option<bool> {
        let Node::A_Const(constant) = node else { return None };
        match constant.val()? {
            ConstValue::Boolean(value) => Some(value),
            ConstValue::String(text) => {
                self.reads_value(constant.location);
                match text {
                    "t" | "true" => Some(true),
                    "f" | "false" => Some(false),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Whether a call is of set_config, by its name.
fn is_set_config(call: &nodes::FuncCall) -> bool {
    qualified_name(call.funcname()).is_some_and(|(_, name)| name == "set_config")
}

fn owned(name: Option<&str>) -> String {
    name.unwrap_or_default().to_owned()
}

fn lower(name: Option<&str>) -> String {
    name.unwrap_or_default().to_lowercase()
}

/// A setting's value as one string; `None` for what pgward can't put as one.
fn flatten(name: &str, args: &NodeList) -> Option<String> {
    let is_list = LIST_SETTINGS.contains(&name);
    let mut text = String::new();
    for (index, arg) in args.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        let Node::A_Const(constant) = arg else { return None };
        match constant.val()? {
            ConstValue::Integer(number) => text.push_str(&number.to_string()),
            ConstValue::Float(number) => text.push_str(number),
            ConstValue::String(value) if is_list => text.push_str(&quote_identifier(value)),
            ConstValue::String(value) => text.push_str(value),
            _ => return None,
        }
    }
    Some(text)
}

/// As Postgres's `quote_identifier`, but for keywords, which mean the same unquoted in a list.
fn quote_identifier(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match is_plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// The modes of BEGIN and SET TRANSACTION. Of a mode that is said twice the last counts.
fn modes(options: &NodeList) -> TransactionModes {
    let mut modes = TransactionModes::default();
    for option in options.iter() {
        let Node::DefElem(option) = option else { continue };
        let Node::A_Const(value) = option.arg() else { continue };
        let is_on = matches!(value.val(), Some(ConstValue::Integer(number)) if number != 0);
        match (option.defname(), value.val()) {
            (Some("transaction_isolation"), Some(ConstValue::String(level))) => {
                modes.isolation = Some(match level {
                    "serializable" => Isolation::Serializable,
                    "repeatable read" => Isolation::RepeatableRead,
                    "read uncommitted" => Isolation::ReadUncommitted,
                    _ => Isolation::ReadCommitted,
                });
            }
            (Some("transaction_read_only"), _) => modes.read_only = Some(is_on),
            (Some("transaction_deferrable"), _) => modes.deferrable = Some(is_on),
            _ => {}
        }
    }
    modes
}

/// SET SESSION CHARACTERISTICS AS TRANSACTION is short for these settings.
fn characteristics(modes: TransactionModes) -> Vec<Setting> {
    let setting = |name: &str, value: &str| Setting {
        name: name.to_owned(),
        value: SettingValue::Text(value.to_owned()),
        is_local: false,
        from_function: false,
    };
    let on_off = |is_on| if is_on { "on" } else { "off" };
    let isolation = modes.isolation.map(|level| match level {
        Isolation::ReadUncommitted => "read uncommitted",
        Isolation::ReadCommitted => "read committed",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::Serializable => "serializable",
    });
    [
        isolation.map(|level| setting("default_transaction_isolation", level)),
        modes.read_only.map(|is_on| setting("default_transaction_read_only", on_off(is_on))),
        modes.deferrable.map(|is_on| setting("default_transaction_deferrable", on_off(is_on))),
    ]
    .into_iter()
    .flatten()
    .collect()
}
