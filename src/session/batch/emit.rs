//! Puts a batch into a server's buffer under the server's own statement names.

use std::sync::atomic::Ordering;

use super::{Batch, CLOSE_COMPLETE, PARSE_COMPLETE, StepKind};
use crate::server::{Expect, Message, ServerConn};
use crate::session::settle::send_sync;
use crate::session::statements::Statement;
use crate::session::{Attached, Session};
use crate::wire::HEADER_BYTES;
use crate::wire::frontend::{self, Bind, Kind};

impl Session {
    /// Puts the batch into the server's buffer under the server's own names.
    pub(super) fn emit(&mut self, batch: &Batch, attached: &mut Attached) {
        let config = self.services.config.load();
        let (max, threshold) =
            (config.pool.max_prepared_statements, config.pool.server_prepare_threshold);
        let input = self.input.as_slice();
        let is_own = self.has_own_server();
        let server = &mut *attached.checkout.server;
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
                    emit_parse(server, statement, !is_unnamed, threshold, max, true);
                }
                StepKind::Bind(statement) | StepKind::Control(Message::Bind, statement, _) => {
                    // Read once already when it was looked at.
                    let Ok(bind) = Bind::read(body) else { continue };
                    let is_named = !bind.statement.is_empty();
                    let name = ready(server, statement, is_named, threshold, max);
                    server.send(Message::Bind, Expect::Forward, |out| {
                        frontend::write_bind_as(out, &bind, name);
                    });
                }
                StepKind::DescribeStatement(statement) => {
                    let is_named = body.len() > 2;
                    let name = ready(server, statement, is_named, threshold, max);
                    server.send(Message::Describe, Expect::Forward, |out| {
                        frontend::write_describe(out, Kind::Statement, name);
                    });
                }
                StepKind::Control(Message::Describe, statement, _) => {
                    if body.first() == Some(&b'S') {
                        let name = ready(server, statement, body.len() > 2, threshold, max);
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
                    server.synthesize(Message::Close, CLOSE_COMPLETE);
                }
                // Only where the server is the session's own.
                StepKind::Own(_) => {}
                StepKind::Local(message, bytes) => server.synthesize(*message, bytes.clone()),
                StepKind::Sync => send_sync(server),
                StepKind::Flush => server.send_bytes(frame),
            }
        }
    }
}

/// As [`Session::emit`], to a server that has the client's own names.
fn emit_as_sent(server: &mut ServerConn, batch: &Batch, input: &[u8]) {
    for step in &batch.steps {
        let frame = &input[step.frame.clone()];
        let message = match &step.kind {
            StepKind::Parse(_) => Message::Parse,
            StepKind::Bind(_) => Message::Bind,
            StepKind::DescribeStatement(_) => Message::Describe,
            StepKind::CloseStatement => Message::Close,
            StepKind::Execute => Message::Execute,
            StepKind::Portal(message) | StepKind::Control(message, ..) | StepKind::Own(message) => {
                *message
            }
            StepKind::Local(message, bytes) => {
                server.synthesize(*message, bytes.clone());
                continue;
            }
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
) -> &'s [u8] {
    if server.prepared.touch(statement.id) {
        return statement.server_name.as_bytes();
    }
    if !is_named && server.prepared.is_unnamed(statement.id) {
        return b"";
    }
    emit_parse(server, statement, is_named, threshold, max, false)
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
) -> &'s [u8] {
    if server.prepared.touch(statement.id) {
        if is_client {
            server.synthesize(Message::Parse, PARSE_COMPLETE);
        }
        return statement.server_name.as_bytes();
    }
    let expect = if is_client { Expect::Forward } else { Expect::Swallow };
    let is_repeated = threshold > 0 && statement.unnamed_uses.load(Ordering::Relaxed) >= threshold;
    let name: &[u8] = if is_named || is_repeated { statement.server_name.as_bytes() } else { b"" };
    server.send(Message::Parse, expect, |out| {
        let types = statement.types().iter().copied();
        frontend::write_parse(out, name, statement.sql().as_bytes(), types);
    });
    if name.is_empty() {
        server.prepared.parse_unnamed(Some(statement.id));
        return name;
    }
    server.prepared.parse_named(statement.id);
    while let Some(oldest) = server.prepared.evict_over(max.max(1)) {
        server.send(Message::Close, Expect::Swallow, |out| {
            frontend::write_close(out, Kind::Statement, oldest.server_name().as_bytes());
        });
    }
    name
}
