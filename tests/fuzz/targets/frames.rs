//! A stream of messages, of a client or a server: how frames are cut, and every view of a body.

use bytes::BytesMut;
use pgward::wire::backend::{self, AuthRequest, ErrorFields, ErrorReply};
use pgward::wire::frontend::{self, Bind, Execute, Named, Parse, Query, SaslInitial};
use pgward::wire::{self, HEADER_BYTES};

use super::{Input, pieces};

const LIMIT: usize = 1 << 20;

/// The choices of [`Input::cuts`], then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let cuts = input.cuts();
    let stream = input.0;
    let (frames, error) = cut(&[stream]);
    assert_eq!(cut(&pieces(stream, &cuts)), (frames.clone(), error), "cut at {cuts:?}");
    for (tag, body) in &frames {
        look(*tag, body);
    }
}

type Frames = Vec<(u8, Vec<u8>)>;

/// Frames as the sessions cut them, the bytes coming in `pieces`.
fn cut(pieces: &[&[u8]]) -> (Frames, Option<wire::Error>) {
    let (mut buffer, mut frames) = (Vec::new(), Frames::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match wire::peek(&buffer[at..], LIMIT) {
                Ok(Some((tag, body))) => {
                    at += HEADER_BYTES + body.len();
                    frames.push((tag, body.to_vec()));
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        buffer.drain(..at);
    }
    (frames, None)
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    let (_, body) = wire::peek(&out, usize::MAX).expect("a frame").expect("a whole one");
    assert_eq!(HEADER_BYTES + body.len(), out.len(), "more than one frame");
    body.to_vec()
}

/// What is read and written again is what came.
fn look(tag: u8, body: &[u8]) {
    match tag {
        b'Q' => {
            if let Ok(query) = Query::read(body) {
                assert_eq!(written(|out| frontend::write_query(out, query.sql)), body);
            }
        }
        b'P' => {
            if let Ok(parse) = Parse::read(body) {
                let again = written(|out| {
                    frontend::write_parse(out, parse.name, parse.sql, parse.param_types());
                });
                assert_eq!(again, body);
            }
        }
        b'B' => {
            if let Ok(bind) = Bind::read(body) {
                assert_eq!(bind.params().count(), bind.param_count());
                for n in 0..=bind.param_count().min(300) as u16 + 1 {
                    let is_there = (1..=bind.param_count()).contains(&usize::from(n));
                    assert_eq!(bind.param(n).is_some(), is_there, "${n}");
                }
                bind.result_formats().for_each(drop);
                let again = written(|out| frontend::write_bind_as(out, &bind, bind.statement));
                assert_eq!(again, body);
                let renamed = written(|out| frontend::write_bind_as(out, &bind, b"other"));
                let renamed = Bind::read(&renamed).expect("a Bind");
                assert!(renamed.params().eq(bind.params()), "other values");
                assert!(renamed.result_formats().eq(bind.result_formats()), "other formats");
            }
        }
        b'D' => {
            if let Ok(named) = Named::read_describe(body) {
                let again = written(|out| frontend::write_describe(out, named.kind, named.name));
                assert_eq!(again, body);
            }
        }
        b'C' => {
            if let Ok(named) = Named::read_close(body) {
                let again = written(|out| frontend::write_close(out, named.kind, named.name));
                assert_eq!(again, body);
            }
            let _ = backend::read_command_complete(body).is_ok();
        }
        b'p' => {
            let _ = SaslInitial::read(body).is_ok();
        }
        _ => {}
    }
    if tag == b'E'
        && let Ok(execute) = Execute::read(body)
    {
        let again = written(|out| frontend::write_execute(out, execute.portal, execute.max_rows));
        assert_eq!(again, body);
    }
    look_at_reply(tag, body);
}

fn look_at_reply(tag: u8, body: &[u8]) {
    match tag {
        b'E' | b'N' => {
            if let Ok(fields) = ErrorFields::read(body) {
                let code = fields.sqlstate().to_owned();
                let is_code = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase();
                assert!(code.len() == 5 && code.bytes().all(is_code), "{code:?}");
                let _ = fields.is_fatal();
            }
        }
        b'R' => {
            let _ = AuthRequest::read(body).is_ok();
        }
        b'S' => {
            if let Ok((name, value)) = backend::read_parameter_status(body)
                && body.len() < 10_000
            {
                let again = written(|out| backend::write_parameter_bytes(out, name, value));
                assert_eq!(again, body);
            }
        }
        b'Z' => {
            if let Ok(status) = backend::read_ready_for_query(body) {
                assert_eq!(written(|out| backend::write_ready_for_query(out, status)), body);
            }
        }
        b'K' => {
            if let Ok((pid, key)) = backend::read_backend_key_data(body) {
                assert_eq!(written(|out| backend::write_backend_key_data(out, pid, key)), body);
            }
        }
        _ => {}
    }
    // Whatever a text of ours quotes, the error stays one message.
    let quoted = String::from_utf8_lossy(body).replace('\0', "?");
    written(|out| ErrorReply::error("XX000", quoted.clone()).encode(out));
}
