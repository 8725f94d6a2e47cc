//! The lexer against the parser: what one takes for a literal, the other must.

use std::sync::Arc;

use pg_raw_parse::ConstValue;

use super::*;

/// Places of string and number constants in the parse tree.
fn constants(text: &str) -> Vec<usize> {
    let Ok(tree) = pg_raw_parse::parse(text) else { return Vec::new() };
    let mut places = Vec::new();
    // The parser's own walk knows no others.
    let is_walkable = |node: &Node<'_>| {
        matches!(
            node,
            Node::SelectStmt(_) | Node::InsertStmt(_) | Node::UpdateStmt(_) | Node::DeleteStmt(_)
        )
    };
    for statement in tree.stmts().filter(is_walkable) {
        pg_raw_parse::walk::walk(statement, |node| {
            if let Node::A_Const(constant) = node
                && let Ok(place) = usize::try_from(constant.location)
                && !matches!(constant.val(), None | Some(ConstValue::Boolean(_)))
            {
                places.push(place);
            }
        });
    }
    places
}

fn golden_texts() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/analyze");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.flat_map(|path| {
        let file = std::fs::read_to_string(path).unwrap();
        let blocks = file.split("\n\n").filter_map(|block| block.split_once("\n----"));
        let strip = |text: &str| -> String {
            text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
        };
        blocks.map(|(text, _)| strip(text)).collect::<Vec<_>>()
    });
    texts.collect()
}

#[test]
fn each_constant_of_the_tree_is_a_slot() {
    let mut count = 0;
    for text in golden_texts() {
        let lexed = Lexed::new(&text);
        for place in constants(&text) {
            let rest = &text[place..];
            // EXTRACT(year ...), U&'..': a word stands there, or a literal that is never read.
            let is_word = rest.starts_with(|c: char| c.is_alphabetic())
                && !matches!(rest.as_bytes(), [b'E' | b'B' | b'X', b'\'', ..]);
            // N'..' is two tokens: the parser means the quote.
            let is_word = is_word || text[..place].ends_with('N');
            let is_slot = lexed.slot_at(place).is_some() || lexed.slot_after_sign(place).is_some();
            assert!(is_slot || is_word, "{text}\nat {place}");
            count += usize::from(is_slot);
        }
    }
    assert!(count > 500, "{count} constants");
}

#[test]
fn each_slot_that_the_key_leaves_out_is_a_constant_or_looked_at() {
    let catalog = Arc::new(Catalog::default());
    let context =
        Context { catalog: &catalog, search_path: "public", role: "app", param_types: &[] };
    for text in golden_texts() {
        let lexed = Lexed::new(&text);
        let Ok((_, looked_at)) = analyze(&lexed, &context) else { continue };
        let places = constants(&text);
        for slot in (0..lexed.slot_count() as u16).filter(|slot| lexed.is_left_out(*slot)) {
            let is_constant = places.iter().any(|place| {
                lexed.slot_at(*place).is_some_and(|(found, _)| found == slot)
                    || lexed.slot_after_sign(*place) == Some(slot)
            });
            assert!(is_constant || looked_at.contains(&slot), "{text}\nslot {slot}");
        }
    }
}

#[test]
fn operators_are_sorted() {
    assert!(expr::OPERATORS.is_sorted_by(|a, b| a < b));
}
