//! Puts a batch into a server's buffer under the server's own statement names.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::{Batch, CLOSE_COMPLETE, PARSE_COMPLETE, StepKind};
use crate::server::{Expect, Message, ServerConn};
use crate::session::execute::Rewrite;
use crate::session::pins::Change;
use crate::session::settle::send_sync;
use crate::session::statements::Statement;
use crate::session::{Attached, Session};
use crate::wire::HEADER_BYTES;
use crate::wire::encoding::Encoding;
use crate::wire::frontend::{self, Bind, Kind};

impl Session {
    /// Puts the batch into the server's buffer under the server's own names.
    pub(super) fn emit(&mut self, batch: &Batch, attached: &mut Attached) {
        let config = self.services.config.load();
        let (max, threshold) =
            (config.pool.max_prepared_statements, config.pool.server_prepare_threshold);
        let input = self.input.as_slice();
        let is_own = self.has_own_server();
        let encoding = self.encoding_on(attached);
        // What was found as the client was told must still be there when its turn comes.
        let max = if batch.told.is_empty() { max } else { max.max(batch.steps.len()) };
        // A table of its own may stand before another of its name.
        let is_pinned = !attached.pins.is_empty() || attached.pin_change != Change::None;
        let threshold = if is_pinned { 0 } else { threshold };
        let server = &mut *attached.checkout.server;
        server.prepared.epoch = self.services.catalog.epoch();
        if is_own {
            emit_as_sent(server, batch, input);
            return;
        }
        for step in &batch.steps {
            let frame = &input[step.frame.clone()];
            let body = &frame[HEADER_BYTES..];
            match &step.kind {
                StepKind::Parse(statement) | StepKind::Control(Message::Parse, statement, _) => {
                    let is_unnamed = body.first() == Some(&0);
                    if is_unnamed {
                        statement.unnamed_uses.fetch_add(1, Ordering::Relaxed);
                    }
                    if (is_pinned || server.prepared.is_old(statement.id))
                        && !batch.is_told(statement)
                    {
                        close(server, statement);
                    }
                    emit_parse(server, statement, !is_unnamed, threshold, max, true, encoding);
                }
                StepKind::Bind(statement, _) | StepKind::Control(Message::Bind, statement, _) => {
                    // Read once already when it was looked at.
                    let Ok(bind) = Bind::read(body) else { continue };
                    let is_named = !bind.statement.is_empty();
                    let name = ready(server, statement, is_named, threshold, max, encoding);
                    if let Some(made) = statement.makes() {
                        send_close(server, made);
                    }
                    server.send(Message::Bind, Expect::Forward, |out| {
                        frontend::write_bind_as(out, &bind, name);
                    });
                }
                StepKind::DescribeStatement(statement) => {
                    let is_named = body.len() > 2;
                    let name = ready(server, statement, is_named, threshold, max, encoding);
                    let message = Message::DescribeShared(statement.id);
                    server.send(message, Expect::Forward, |out| {
                        frontend::write_describe(out, Kind::Statement, name);
                    });
                }
                StepKind::Control(Message::Describe, statement, _) => {
                    if body.first() == Some(&b'S') {
                        let name =
                            ready(server, statement, body.len() > 2, threshold, max, encoding);
                        server.send(Message::Describe, Expect::Forward, |out| {
                            frontend::write_describe(out, Kind::Statement, name);
                        });
                    } else {
                        server.send(Message::Describe, Expect::Forward, |out| {
                            out.extend_from_slice(frame);
                        });
                    }
                }
                StepKind::Portal(message) | StepKind::Control(message, ..) => {
                    server.send(*message, Expect::Forward, |out| out.extend_from_slice(frame));
                }
                StepKind::Execute => {
                    server.send(Message::Execute, Expect::Forward, |out| {
                        out.extend_from_slice(frame);
                    });
                }
                StepKind::CloseStatement => {
                    server.synthesize(Message::CloseStatement, CLOSE_COMPLETE);
                }
                // The one only where the server is the session's own, the other never with a server.
                StepKind::Own(_) | StepKind::DiscardAll => {}
                StepKind::Local(message, bytes) => server.synthesize(*message, bytes.clone()),
                StepKind::Sync => {
                    end_brief(server, batch);
                    send_sync(server);
                }
                StepKind::Flush => {
                    end_brief(server, batch);
                    server.send_bytes(frame);
                }
            }
        }
    }
}

/// What has no name for the client is not kept under one.
fn end_brief(server: &mut ServerConn, batch: &Batch) {
    if let Some(statement) = &batch.brief {
        close(server, statement);
    }
}

/// Closes `statement` on the server, if that has it.
pub(super) fn close(server: &mut ServerConn, statement: &Statement) {
    if server.prepared.touch(statement.id) {
        send_close(server, statement);
    }
}

/// As [`Session::emit`], to a server that has the client's own names.
fn emit_as_sent(server: &mut ServerConn, batch: &Batch, input: &[u8]) {
    for step in &batch.steps {
        let frame = &input[step.frame.clone()];
        let message = match &step.kind {
            StepKind::Parse(_) => Message::Parse,
            StepKind::Bind(..) => Message::Bind,
            StepKind::DescribeStatement(_) => Message::Describe,
            StepKind::CloseStatement => Message::CloseStatement,
            StepKind::Execute => Message::Execute,
            StepKind::Portal(message) | StepKind::Control(message, ..) | StepKind::Own(message) => {
                *message
            }
            StepKind::Local(message, bytes) => {
                server.synthesize(*message, bytes.clone());
                continue;
            }
            StepKind::DiscardAll => continue,
            StepKind::Sync => {
                send_sync(server);
                continue;
            }
            StepKind::Flush => {
                server.send_bytes(frame);
                continue;
            }
        };
        if message == Message::Parse {
            server.prepared.parse_unnamed(None);
        }
        server.send(message, Expect::Forward, |out| out.extend_from_slice(frame));
    }
}

/// The name of `statement` on `server`, which gets it now if it lacks it.
pub(super) fn ready<'s>(
    server: &mut ServerConn,
    statement: &'s Statement,
    is_named: bool,
    threshold: u32,
    max: usize,
    encoding: Encoding,
) -> &'s [u8] {
    let mut max = max;
    if let Some(of) = statement.executes() {
        // Both are needed at a time.
        max = max.max(2);
        ready(server, of, true, threshold, max, encoding);
    }
    if server.prepared.touch(statement.id) {
        return statement.server_name.as_bytes();
    }
    if !is_named && server.prepared.is_unnamed(statement.id) {
        return b"";
    }
    emit_parse(server, statement, is_named, threshold, max, false, encoding)
}

/// Sends Parse of `statement` unless the server has it; `is_client`: the client asked for it and
/// gets the ParseComplete.
fn emit_parse<'s>(
    server: &mut ServerConn,
    statement: &'s Statement,
    is_named: bool,
    threshold: u32,
    max: usize,
    is_client: bool,
    encoding: Encoding,
) -> &'s [u8] {
    let mut max = max;
    if let Some(of) = statement.executes() {
        max = max.max(2);
        ready(server, of, true, threshold, max, encoding);
    }
    if server.prepared.touch(statement.id) {
        if is_client {
            server.synthesize(Message::Parse, PARSE_COMPLETE);
        }
        return statement.server_name.as_bytes();
    }
    let expect = if is_client { Expect::Forward } else { Expect::Swallow };
    if let Some(text) = statement.prepare_text() {
        send_prepare(server, statement, &written(&text, encoding));
        evict(server, max);
        return statement.server_name.as_bytes();
    }
    let is_repeated = threshold > 0 && statement.unnamed_uses.load(Ordering::Relaxed) >= threshold;
    let name: &[u8] = if is_named || is_repeated { statement.server_name.as_bytes() } else { b"" };
    server.send(Message::Parse, expect, |out| {
        let types = statement.types().iter().copied();
        frontend::write_parse(out, name, &written(statement.sql(), encoding), types);
    });
    if name.is_empty() {
        server.prepared.parse_unnamed(Some(statement.id));
        return name;
    }
    server.prepared.parse_named(statement.id);
    evict(server, max);
    name
}

/// Closes what was used longest ago, so that `max` statements are left.
fn evict(server: &mut ServerConn, max: usize) {
    while let Some(oldest) = server.prepared.evict_over(max.max(1)) {
        server.send(Message::Close, Expect::Swallow, |out| {
            frontend::write_close(out, Kind::Statement, oldest.server_name().as_bytes());
        });
    }
}

/// Makes sure that the server lacks a statement which the client is about to PREPARE.
fn send_close(server: &mut ServerConn, statement: &Statement) {
    server.prepared.remove(statement.id);
    server.send(Message::Close, Expect::Swallow, |out| {
        frontend::write_close(out, Kind::Statement, statement.server_name.as_bytes());
    });
}

/// A portal for statements of pgward's own: the unnamed one may be the client's.
const PORTAL: &[u8] = b"pgward prepare";

/// Has the server PREPARE `statement`. Closed first, because after an error nobody can say whether
/// the PREPARE before it has run.
fn send_prepare(server: &mut ServerConn, statement: &Statement, text: &[u8]) {
    send_close(server, statement);
    server.prepared.parse_unnamed(None);
    server.send(Message::Parse, Expect::Swallow, |out| {
        frontend::write_parse(out, b"", text, std::iter::empty());
    });
    server.send(Message::Bind, Expect::Swallow, |out| frontend::write_bind(out, PORTAL, b""));
    server.send(Message::Execute, Expect::Swallow, |out| {
        frontend::write_execute(out, PORTAL, 0);
    });
    server.send(Message::Close, Expect::Swallow, |out| {
        frontend::write_close(out, Kind::Portal, PORTAL);
    });
    server.prepared.prepare(statement.id);
}

/// Sends the text of a PREPARE or EXECUTE as a Query, and ahead of it what that needs.
pub(in crate::session) fn send_rewrite(
    server: &mut ServerConn,
    rewrite: &Rewrite,
    max: usize,
    encoding: Encoding,
) {
    match rewrite.is_prepare {
        _ if rewrite.is_own => {}
        true => send_close(server, &rewrite.of),
        false => {
            ready(server, &rewrite.of, true, 0, max, encoding);
        }
    }
    let text = written(&rewrite.text, encoding);
    server.send(Message::Query, Expect::Forward, |out| frontend::write_query(out, &text));
}

/// A text of a client's for a server with this client_encoding. It may have been prepared under
/// another that has more characters; what can't be written must not run as something else.
fn written(text: &str, encoding: Encoding) -> Cow<'_, [u8]> {
    encoding.encode(text).unwrap_or(Cow::Borrowed(b"pgward can not write this in client_encoding"))
}
