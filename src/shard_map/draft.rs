//! The shards of a map file: `[[shard]]` and `[[shards]]`, and who owns which bucket.
//!
//! A [`Draft`] is a shard as far as it could be read. The checks over all drafts conclude nothing
//! from what could not: a problem is told where it is, not where it leads to. Called by `parse`.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use crate::document::{Fields, Report, Spanned};

use super::{Address, HOSTS_MAX, Shard, ShardId, ShardTls, ranges};

/// Buckets of a map; also bounds the bucket table.
pub(super) const MODULUS_MAX: u32 = 1 << 16;
/// Postgres cuts longer names.
const NAME_BYTES_MAX: usize = 63;

/// A shard as the file says it, what could not be read left out.
pub(super) struct Draft {
    id: Option<Spanned<u16>>,
    region: Option<String>,
    /// Outer `None`: not said. Inner: not readable.
    buckets: Option<Option<Vec<RangeInclusive<u32>>>>,
    /// Where `buckets` stands, else where the shard begins.
    buckets_span: Range<usize>,
    /// The primary is the first, if there is one.
    primary: Option<Spanned<Address>>,
    replicas: Vec<Spanned<Address>>,
    database: Option<String>,
    tls: ShardTls,
}

/// `[[shard]]` and `[[shards]]`, in that order.
pub(super) fn read_shards(
    report: &Report<'_>,
    root: &mut Fields<'_, '_>,
    modulus: Option<u32>,
    map_database: Option<&str>,
) -> Vec<Draft> {
    let singles = root.tables("shard", "[[shard]]");
    let groups = root.tables("shards", "[[shards]]");
    if singles.is_empty() && groups.is_empty() {
        report.at(&(0..0), "the map has no shard: add [[shard]] or [[shards]]");
    }
    let singles = singles.into_iter().map(|table| read_shard(report, table, modulus, map_database));
    let mut drafts: Vec<Draft> = singles.collect();
    for table in groups {
        drafts.extend(read_group(report, table, map_database));
    }
    drafts
}

fn read_shard(
    report: &Report<'_>,
    mut table: Fields<'_, '_>,
    modulus: Option<u32>,
    map_database: Option<&str>,
) -> Draft {
    table.require(&["id", "region", "primary"]);
    let id = table.integer("id", 0..=u64::from(u16::MAX));
    let buckets_span = table.span_of("buckets");
    let buckets = table.string("buckets").map(|text| {
        let last = modulus.map_or(MODULUS_MAX, |modulus| modulus) - 1;
        let parsed = ranges::parse(text.get_ref(), last);
        parsed.map_err(|error| report.at(&text.span(), format!("buckets: {error}"))).ok()
    });
    let address = |text: Spanned<&str>| read_address(report, text.get_ref(), &text);
    let draft = Draft {
        id: id.map(|id| Spanned::new(id.span(), *id.get_ref() as u16)),
        region: read_region(report, &mut table),
        // Said but of the wrong type: not readable either.
        buckets: if buckets.is_none() && buckets_span != *table.span() {
            Some(None)
        } else {
            buckets
        },
        buckets_span,
        primary: table.string("primary").and_then(address),
        replicas: read_replicas(report, &mut table).into_iter().filter_map(address).collect(),
        database: match table.string("database") {
            Some(name) => check_name(report, &name),
            None => map_database.map(str::to_owned),
        },
        tls: ShardTls::read(report, &mut table),
    };
    table.finish();
    draft
}

/// `[[shards]]`: as many shards as `ids` has numbers, from patterns.
fn read_group(
    report: &Report<'_>,
    mut table: Fields<'_, '_>,
    map_database: Option<&str>,
) -> Vec<Draft> {
    table.require(&["ids", "region", "primary"]);
    let ids_text = table.string("ids");
    let region = read_region(report, &mut table);
    let primary = table.string("primary");
    let replicas = read_replicas(report, &mut table);
    let database = table.string("database");
    let tls = ShardTls::read(report, &mut table);
    let span = table.span().clone();
    table.finish();
    let Some(ids_text) = ids_text else { return vec![unread(&span)] };
    let ids = match ranges::parse(ids_text.get_ref(), u32::from(u16::MAX)) {
        Ok(ids) => ids.into_iter().flatten(),
        Err(error) => {
            report.at(&ids_text.span(), format!("ids: {error}"));
            return vec![unread(&span)];
        }
    };
    let drafts = ids.map(|id| {
        let host = |pattern: &Spanned<&str>| {
            let text = expand(report, pattern, id)?;
            read_address(report, &text, pattern)
        };
        let database = match &database {
            Some(pattern) => expand(report, pattern, id)
                .and_then(|name| check_name(report, &Spanned::new(pattern.span(), &name))),
            None => map_database.map(str::to_owned),
        };
        Draft {
            id: Some(Spanned::new(ids_text.span(), id as u16)),
            region: region.clone(),
            buckets: None,
            buckets_span: span.clone(),
            primary: primary.as_ref().and_then(host),
            replicas: replicas.iter().filter_map(host).collect(),
            database,
            tls: tls.clone(),
        }
    });
    drafts.collect()
}

/// Stands for shards of unknown number, so that nothing is concluded from how many there are.
fn unread(span: &Range<usize>) -> Draft {
    Draft {
        id: None,
        region: None,
        buckets: None,
        buckets_span: span.clone(),
        primary: None,
        replicas: Vec::new(),
        database: None,
        tls: ShardTls::default(),
    }
}

/// Puts `id` where the pattern says `{id}`, or `{id:02}` for at least two digits.
fn expand(report: &Report<'_>, pattern: &Spanned<&str>, id: u32) -> Option<String> {
    let mut expanded = String::new();
    let mut rest = *pattern.get_ref();
    while let Some((before, after)) = rest.split_once('{') {
        let Some((inside, tail)) = after.split_once('}') else { break };
        let width = match inside.as_bytes() {
            b"id" => 0,
            [b'i', b'd', b':', b'0', width @ b'1'..=b'9'] => usize::from(width - b'0'),
            _ => break,
        };
        expanded.push_str(before);
        expanded.push_str(&format!("{id:0width$}"));
        rest = tail;
    }
    if rest.contains(['{', '}']) || expanded.contains('}') {
        let message = "in patterns, braces hold `{id}`, or `{id:02}` for two digits";
        report.at(&pattern.span(), message);
        return None;
    }
    expanded.push_str(rest);
    Some(expanded)
}

fn read_region(report: &Report<'_>, table: &mut Fields<'_, '_>) -> Option<String> {
    let region = table.string("region")?;
    let text = *region.get_ref();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !plain {
        let message = "a region has 1 to 63 letters, digits, `-` and `_`, such as north-america";
        report.at(&region.span(), message);
        return None;
    }
    Some(text.to_owned())
}

/// The primary is a host too.
fn read_replicas<'a>(report: &Report<'_>, table: &mut Fields<'a, '_>) -> Vec<Spanned<&'a str>> {
    let replicas = table.strings("replicas");
    if let Some(beyond) = replicas.get(HOSTS_MAX - 1) {
        let message = format!("a shard has at most {HOSTS_MAX} hosts, its primary included");
        report.at(&beyond.span(), message);
    }
    replicas
}

/// `text` is what `written` stands for, where that is a pattern.
fn read_address(
    report: &Report<'_>,
    text: &str,
    written: &Spanned<&str>,
) -> Option<Spanned<Address>> {
    match text.parse() {
        Ok(address) => Some(Spanned::new(written.span(), address)),
        Err(error) => {
            report.at(&written.span(), format!("`{}` {error}", written.get_ref()));
            None
        }
    }
}

/// Whether the ids are 0..n-1, each once.
pub(super) fn check_ids(report: &Report<'_>, drafts: &[Draft]) -> bool {
    let mut whole = true;
    let mut lines: HashMap<u16, usize> = HashMap::new();
    let mut beyond = None;
    for id in drafts.iter().filter_map(|draft| draft.id.as_ref()) {
        let number = *id.get_ref();
        if let Some(before) = lines.insert(number, report.line(&id.span())) {
            report.at(&id.span(), format!("shard {number} is there already (line {before})"));
            whole = false;
        } else if usize::from(number) >= drafts.len() {
            beyond.get_or_insert(id.span());
        }
    }
    // An id that could not be read may be the one that is missing.
    let all_read = drafts.iter().all(|draft| draft.id.is_some());
    if let (Some(span), true) = (&beyond, all_read) {
        let last = drafts.len() - 1;
        let missing: Vec<u32> =
            (0..=last as u32).filter(|id| !lines.contains_key(&(*id as u16))).collect();
        let message = format!(
            "the ids of {} shards are 0 to {last}: {} is missing",
            drafts.len(),
            ranges::show(&missing)
        );
        report.at(span, message);
    }
    whole && all_read && beyond.is_none()
}

/// No two hosts are the same database of the same server.
pub(super) fn check_hosts(report: &Report<'_>, drafts: &[Draft]) {
    let mut owners: HashMap<(&Address, &str), (usize, &Spanned<u16>)> = HashMap::new();
    for draft in drafts {
        let (Some(database), Some(id)) = (draft.database.as_deref(), &draft.id) else { continue };
        for host in draft.primary.iter().chain(&draft.replicas) {
            let address = host.get_ref();
            let line = report.line(&host.span());
            let Some((before, other)) = owners.insert((address, database), (line, id)) else {
                continue;
            };
            // Ids of one place come from one [[shards]].
            let message = if other.span() == id.span() && other != id {
                format!("{address}/{database} stands for several shards: put {{id}} into it")
            } else {
                format!(
                    "{address}/{database} is shard {}'s already (line {before})",
                    other.get_ref()
                )
            };
            report.at(&host.span(), message);
        }
    }
}

/// The bucket table; every bucket belongs to one shard.
pub(super) fn own_buckets(
    report: &Report<'_>,
    drafts: &[Draft],
    ids_whole: bool,
    modulus: u32,
    modulus_span: &Range<usize>,
) -> Vec<ShardId> {
    // By default shard i owns bucket i, which means something only with ids 0..n-1.
    let by_default = ids_whole.then_some(drafts.len() == modulus as usize);
    let mut owners: Vec<Option<(ShardId, usize)>> = vec![None; modulus as usize];
    let mut whole = true;
    for draft in drafts {
        let (Some(id), Some(ranges)) = (&draft.id, owned(report, draft, by_default, modulus))
        else {
            whole = false;
            continue;
        };
        let line = report.line(&draft.buckets_span);
        let mut clashes: Vec<((ShardId, usize), Vec<u32>)> = Vec::new();
        for bucket in ranges.into_iter().flatten() {
            let Some(slot) = owners.get_mut(bucket as usize) else { continue };
            match slot {
                None => *slot = Some((ShardId(*id.get_ref()), line)),
                Some(other) => match clashes.iter_mut().find(|(owner, _)| owner == other) {
                    Some((_, buckets)) => buckets.push(bucket),
                    None => clashes.push((*other, vec![bucket])),
                },
            }
        }
        for ((other, before), buckets) in clashes {
            let buckets = ranges::show(&buckets);
            let message = format!("bucket {buckets} is shard {other}'s already (line {before})");
            report.at(&draft.buckets_span, message);
        }
    }
    let gaps: Vec<u32> = (0..modulus).filter(|bucket| owners[*bucket as usize].is_none()).collect();
    if whole && !gaps.is_empty() {
        report.at(modulus_span, format!("bucket {} belongs to no shard", ranges::show(&gaps)));
    }
    owners.into_iter().flatten().map(|(shard, _)| shard).collect()
}

/// The buckets of one shard; `None` where they could not be read.
fn owned(
    report: &Report<'_>,
    draft: &Draft,
    by_default: Option<bool>,
    modulus: u32,
) -> Option<Vec<RangeInclusive<u32>>> {
    match (&draft.buckets, &draft.id) {
        (Some(buckets), _) => buckets.clone(),
        (None, Some(id)) if by_default == Some(true) => {
            let id = u32::from(*id.get_ref());
            Some(vec![id..=id])
        }
        (None, _) if by_default.is_none() => None,
        (None, _) => {
            let message = format!(
                "which buckets? Only a map with as many shards as buckets (modulus {modulus}) \
                 gives bucket i to shard i; else write [[shard]] with `buckets`"
            );
            report.at(&draft.buckets_span, message);
            None
        }
    }
}

/// By rising id. What is not whole was reported, so nothing is lost here.
pub(super) fn shards_by_id(drafts: Vec<Draft>) -> Vec<Shard> {
    let shards = drafts.into_iter().filter_map(|draft| {
        Some(Shard {
            id: ShardId(draft.id?.into_inner()),
            region: draft.region?,
            primary: draft.primary?.into_inner(),
            replicas: draft.replicas.into_iter().map(Spanned::into_inner).collect(),
            database: draft.database?,
            tls: draft.tls,
        })
    });
    let mut shards: Vec<Shard> = shards.collect();
    shards.sort_by_key(|shard| shard.id);
    shards
}

/// A name of a database: reported and `None` where Postgres would not take it as it is.
pub(super) fn check_name(report: &Report<'_>, name: &Spanned<&str>) -> Option<String> {
    let text = *name.get_ref();
    let problem = match text {
        "" => "a database name can't be empty",
        _ if text.len() > NAME_BYTES_MAX => "a database name has at most 63 bytes",
        _ if text.chars().any(char::is_control) => "a database name has no control characters",
        _ => return Some(text.to_owned()),
    };
    report.at(&name.span(), problem);
    None
}
