//! Protocol messages as the transcripts write them: `Parse("s1","SELECT 1") Sync`, both ways.
//!
//! A word is a name with arguments: text in double quotes, else as it stands. [`frontend`] and
//! [`backend`] turn words into bytes, [`shown_frontend`] and [`shown_backend`] bytes into words.

use pgward::wire::backend::{AuthRequest, ErrorFields};
use pgward::wire::{self, Reader, backend, frontend};

use super::messages::{message, packet};

/// Text that is shown in full; longer values are shown by their length.
const SHOWN_BYTES_MAX: usize = 200;

/// A message as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub name: String,
    pub args: Vec<String>,
}

impl Word {
    pub fn arg(&self, n: usize) -> &str {
        self.args.get(n).map_or("", String::as_str)
    }

    fn number(&self, n: usize) -> i32 {
        self.arg(n).parse().unwrap_or(0)
    }
}

/// The words of a line.
pub fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '(' || c.is_whitespace()).unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        rest = &rest[end..];
        let mut args = Vec::new();
        if let Some(inside) = rest.strip_prefix('(') {
            (args, rest) = arguments(inside);
        }
        words.push(Word { name, args });
        rest = rest.trim_start();
    }
    words
}

/// Arguments up to the closing bracket, and what follows it.
fn arguments(mut rest: &str) -> (Vec<String>, &str) {
    let mut args = Vec::new();
    loop {
        if let Some(tail) = rest.strip_prefix(')') {
            return (args, tail);
        } else if let Some(tail) = rest.strip_prefix(',') {
            rest = tail;
        } else if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or_else(|| panic!("no closing quote: {quoted}"));
            args.push(quoted[..end].replace("\\n", "\n").replace("\\0", "\0"));
            rest = &quoted[end + 1..];
        } else {
            let end = rest.find([',', ')']).unwrap_or_else(|| panic!("no closing bracket: {rest}"));
            args.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
    }
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// `A*1000` is a thousand letters A.
fn text(arg: &str) -> Vec<u8> {
    match arg.split_once('*') {
        Some((unit, count)) if count.parse::<usize>().is_ok() => {
            unit.as_bytes().repeat(count.parse().expect("checked"))
        }
        _ => arg.as_bytes().to_vec(),
    }
}

/// A client's message.
pub fn frontend(word: &Word) -> Vec<u8> {
    let arg = |n| word.arg(n);
    match word.name.as_str() {
        "Query" => message(b'Q', &[&text(arg(0)), b"\0"]),
        "Parse" => {
            let types = &word.args[2..];
            let count = (types.len() as u16).to_be_bytes();
            let oids: Vec<u8> = types
                .iter()
                .flat_map(|oid| oid.parse::<u32>().expect("an OID").to_be_bytes())
                .collect();
            message(b'P', &[&cstr(arg(0)), &cstr(arg(1)), &count, &oids])
        }
        "Bind" => {
            let values = word.args.get(2..).unwrap_or_default();
            let mut body = [cstr(arg(0)), cstr(arg(1)), vec![0, 0]].concat();
            body.extend((values.len() as u16).to_be_bytes());
            for value in values {
                if value == "NULL" {
                    body.extend((-1i32).to_be_bytes());
                } else {
                    body.extend((value.len() as u32).to_be_bytes());
                    body.extend(value.as_bytes());
                }
            }
            body.extend([0, 0]);
            message(b'B', &[&body])
        }
        "Describe" => message(b'D', &[arg(0).as_bytes(), &cstr(arg(1))]),
        "Close" => message(b'C', &[arg(0).as_bytes(), &cstr(arg(1))]),
        "Execute" => message(b'E', &[&cstr(arg(0)), &word.number(1).to_be_bytes()]),
        "Sync" => message(b'S', &[]),
        "Flush" => message(b'H', &[]),
        "CopyData" => message(b'd', &[&text(arg(0))]),
        "CopyDone" => message(b'c', &[]),
        "CopyFail" => message(b'f', &[&cstr(arg(0))]),
        "FunctionCall" => message(b'F', &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]]),
        "Terminate" => message(b'X', &[]),
        "Raw" => hex(arg(0)),
        other => panic!("unknown client message {other}"),
    }
}

/// A server's message.
pub fn backend(word: &Word) -> Vec<u8> {
    let arg = |n| word.arg(n);
    match word.name.as_str() {
        "ErrorResponse" | "NoticeResponse" => {
            let (tag, severity) = match (word.name.as_str(), arg(1)) {
                ("NoticeResponse", _) => (b'N', "NOTICE"),
                (_, "") => (b'E', "ERROR"),
                (_, severity) => (b'E', severity),
            };
            let said = if arg(2).is_empty() { "said by the server" } else { arg(2) };
            let routine = if arg(3).is_empty() { "routine" } else { arg(3) };
            let fields = format!("S{severity}\0V{severity}\0C{}\0M{said}\0R{routine}\0\0", arg(0));
            message(tag, &[fields.as_bytes()])
        }
        "RowDescription" => {
            message(b'T', &[b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"])
        }
        "DataRow" => {
            let value = match arg(0).strip_suffix(" bytes") {
                Some(count) => vec![b'x'; count.parse().expect("a count")],
                None => arg(0).as_bytes().to_vec(),
            };
            message(b'D', &[b"\0\x01", &(value.len() as u32).to_be_bytes(), &value])
        }
        "CommandComplete" => message(b'C', &[&cstr(arg(0))]),
        "ReadyForQuery" => message(b'Z', &[arg(0).as_bytes()]),
        "ParameterStatus" => message(b'S', &[&cstr(arg(0)), &cstr(arg(1))]),
        "ParameterDescription" => {
            let count = word.number(0);
            let types = [0, 0, 11, 134].repeat(count as usize);
            message(b't', &[&(count as u16).to_be_bytes(), &types])
        }
        "NotificationResponse" => message(b'A', &[b"\0\0\0\x01news\0\0"]),
        "CopyInResponse" => message(b'G', &[b"\0\0\x01\0\0"]),
        "CopyOutResponse" => message(b'H', &[b"\0\0\x01\0\0"]),
        "CopyData" => message(b'd', &[&text(arg(0))]),
        "CopyDone" => message(b'c', &[]),
        "ParseComplete" => message(b'1', &[]),
        "BindComplete" => message(b'2', &[]),
        "CloseComplete" => message(b'3', &[]),
        "NoData" => message(b'n', &[]),
        "EmptyQueryResponse" => message(b'I', &[]),
        "PortalSuspended" => message(b's', &[]),
        "AuthenticationOk" => message(b'R', &[&[0, 0, 0, 0]]),
        "Raw" => hex(arg(0)),
        other => panic!("unknown server message {other}"),
    }
}

/// What a fake server sends at a login.
pub fn greeting(pid: i32) -> Vec<u8> {
    let mut out = Vec::new();
    for line in [
        "AuthenticationOk",
        "ParameterStatus(\"server_version\",\"15.4\")",
        "ParameterStatus(\"client_encoding\",\"UTF8\")",
        "ParameterStatus(\"TimeZone\",\"UTC\")",
    ] {
        out.extend(words(line).iter().flat_map(backend));
    }
    out.extend(message(b'K', &[&pid.to_be_bytes(), b"key!"]));
    out.extend(message(b'Z', b"I".chunks(1).collect::<Vec<_>>().as_slice()));
    out
}

/// The startup packet of a client.
pub fn startup(params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 0x0003_0000u32.to_be_bytes().to_vec();
    for (name, value) in params {
        body.extend(cstr(name));
        body.extend(cstr(value));
    }
    body.push(0);
    packet(&[&body])
}

fn quoted(bytes: &[u8]) -> String {
    if bytes.len() > SHOWN_BYTES_MAX {
        return format!("{} bytes", bytes.len());
    }
    format!("\"{}\"", String::from_utf8_lossy(bytes).replace('\n', "\\n").replace('\0', "\\0"))
}

/// A client's message in words.
pub fn shown_frontend(tag: u8, body: &[u8]) -> String {
    let shown = || -> Result<String, wire::Error> {
        Ok(match tag {
            b'Q' => format!("Query({})", quoted(frontend::Query::read(body)?.sql)),
            b'P' => {
                let parse = frontend::Parse::read(body)?;
                let mut args = vec![quoted(parse.name), quoted(parse.sql)];
                args.extend(parse.param_types().map(|oid| oid.to_string()));
                format!("Parse({})", args.join(","))
            }
            b'B' => {
                let bind = frontend::Bind::read(body)?;
                let mut args = vec![quoted(bind.portal), quoted(bind.statement)];
                args.extend(bind.params().map(|value| value.map_or("NULL".to_owned(), quoted)));
                format!("Bind({})", args.join(","))
            }
            b'D' => named("Describe", frontend::Named::read_describe(body)?),
            b'C' => named("Close", frontend::Named::read_close(body)?),
            b'E' => {
                let execute = frontend::Execute::read(body)?;
                let portal = quoted(execute.portal);
                match execute.max_rows {
                    0 => format!("Execute({portal})"),
                    rows => format!("Execute({portal},{rows})"),
                }
            }
            b'S' => "Sync".to_owned(),
            b'H' => "Flush".to_owned(),
            b'd' => format!("CopyData({})", quoted(body)),
            b'c' => "CopyDone".to_owned(),
            b'f' => format!("CopyFail({})", quoted(body.strip_suffix(b"\0").unwrap_or(body))),
            b'X' => "Terminate".to_owned(),
            _ => format!("Unknown({:?})", tag as char),
        })
    };
    shown().unwrap_or_else(|error| format!("Malformed({error})"))
}

fn named(what: &str, named: frontend::Named<'_>) -> String {
    let kind = if named.kind == frontend::Kind::Statement { 'S' } else { 'P' };
    format!("{what}({kind},{})", quoted(named.name))
}

/// A server's message in words.
pub fn shown_backend(tag: u8, body: &[u8]) -> String {
    let shown = || -> Result<String, wire::Error> {
        Ok(match tag {
            b'R' => match AuthRequest::read(body)? {
                AuthRequest::Ok => "AuthenticationOk".to_owned(),
                other => format!("{other:?}"),
            },
            b'E' | b'N' => {
                let fields = ErrorFields::read(body)?;
                let text = |field: Option<&[u8]>| {
                    String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
                };
                let kind = if tag == b'E' { "ErrorResponse" } else { "NoticeResponse" };
                let detail = detail(body).map(|d| format!(" detail {d:?}")).unwrap_or_default();
                format!(
                    "{kind}({} {} {:?}{detail})",
                    text(fields.severity),
                    text(fields.sqlstate),
                    text(fields.message)
                )
            }
            b'T' => "RowDescription".to_owned(),
            b'D' => {
                let mut reader = Reader::new(tag, body);
                let mut values = Vec::new();
                for _ in 0..reader.count()? {
                    let length = reader.i32()?;
                    values.push(match usize::try_from(length) {
                        Ok(length) => quoted(reader.bytes(length)?),
                        Err(_) => "NULL".to_owned(),
                    });
                }
                format!("DataRow({})", values.join(","))
            }
            b'C' => format!("CommandComplete({})", quoted(backend::read_command_complete(body)?)),
            b'Z' => format!("ReadyForQuery({})", String::from_utf8_lossy(body)),
            b'S' => {
                let (name, value) = backend::read_parameter_status(body)?;
                format!("ParameterStatus({name:?},{:?})", String::from_utf8_lossy(value))
            }
            b't' => format!("ParameterDescription({})", Reader::new(tag, body).count()?),
            b'K' => "BackendKeyData".to_owned(),
            b'A' => "NotificationResponse".to_owned(),
            b'G' => "CopyInResponse".to_owned(),
            b'H' => "CopyOutResponse".to_owned(),
            b'd' => format!("CopyData({})", quoted(body)),
            b'c' => "CopyDone".to_owned(),
            b'1' => "ParseComplete".to_owned(),
            b'2' => "BindComplete".to_owned(),
            b'3' => "CloseComplete".to_owned(),
            b'n' => "NoData".to_owned(),
            b'I' => "EmptyQueryResponse".to_owned(),
            b's' => "PortalSuspended".to_owned(),
            _ => format!("Unknown({:?})", tag as char),
        })
    };
    shown().unwrap_or_else(|error| format!("Malformed({error})"))
}

fn detail(body: &[u8]) -> Option<String> {
    let fields = body.split(|byte| *byte == 0);
    let mut texts = fields.filter_map(|field| std::str::from_utf8(field).ok());
    texts.find_map(|field| field.strip_prefix('D').map(str::to_owned))
}
