use proptest::prelude::*;

use super::*;

/// The key with marks made visible.
fn key(text: &str) -> String {
    let mut key = Vec::new();
    Lexed::new(text).each_piece(|piece| key.extend_from_slice(piece));
    let visible = |byte: u8| match byte {
        0xFF => b"<s>".to_vec(),
        0xFE => b"<i>".to_vec(),
        0xFD => b"<d>".to_vec(),
        other => vec![other],
    };
    String::from_utf8(key.into_iter().flat_map(visible).collect()).unwrap()
}

fn literals(text: &str) -> Vec<Option<String>> {
    let lexed = Lexed::new(text);
    (0..lexed.slot_count()).map(|slot| lexed.literal(slot as u16).map(Cow::into_owned)).collect()
}

#[test]
fn keys_leave_out_values_comments_and_space() {
    let cases = [
        ("SELECT 'a', 5, 1.5, .5, 1e9, 5.", "SELECT <s>, <i>, <d>, <d>, <d>, <d>"),
        ("  SELECT\n\t1 ", "SELECT <i>"),
        ("select/**/1--x", "select <i>"),
        ("SELECT 1 -- a\n , 2", "SELECT <i> , <i>"),
        ("SELECT /* a /* b */ c */ 1", "SELECT <i>"),
        ("SELECT 'it''s', ''", "SELECT <s>, <s>"),
        ("SELECT 'a'\n 'b'", "SELECT <s>"),
        ("SELECT E'a', e'b\\'c', B'1', X'F', N'n'", "SELECT E'a', e'b\\'c', B'1', X'F', N'n'"),
        ("SELECT $$a$$, $x$b$$c$x$, $1", "SELECT $$a$$, $x$b$$c$x$, $1"),
        ("SELECT \"a  b\", \"c\"\"  d\"", "SELECT \"a  b\", \"c\"\"  d\""),
        ("SELECT a1, b$2, x.y1", "SELECT a1, b$2, x.y1"),
        ("SELECT date'2020'", "SELECT date<s>"),
        ("SELECT a-1, a--1\n", "SELECT a-<i>, a"),
        ("SELECT 1 */* x */ 2", "SELECT <i> * <i>"),
        ("(select 1)", "(select <i>)"),
        ("with a as (select 1) select 2", "with a as (select <i>) select <i>"),
        ("SELECTS 1", "SELECTS 1"),
        ("SET x =  5", "SET x = 5"),
        ("BEGIN /* x */", "BEGIN"),
        ("SELECT '1';  SELECT 2 ;", "SELECT <s>; SELECT <i> ;"),
        ("", ""),
    ];
    for (text, want) in cases {
        assert_eq!(key(text), want, "{text}");
    }
}

#[test]
fn what_is_not_plain_is_its_own_key() {
    let texts = [
        "SELECT  U&'a'  UESCAPE '!', 1",
        "SELECT  U&\"a\", 1",
        "SELECT  0x1F",
        "SELECT  1_000",
        "SELECT  1x",
        "SELECT  'open",
        "SELECT  \"open",
        "SELECT  E'open",
        "SELECT  $a$open",
        "SELECT  /* open",
        "SELECT  'a' 'b'",
        "SELECT  'a' -- c\n 'b'",
    ];
    for text in texts {
        assert_eq!(key(text), text);
    }
}

#[test]
fn literals_are_read_as_they_mean() {
    let cases: [(&str, &[Option<&str>]); 5] = [
        ("SELECT 'a', 5, 'it''s', ''''", &[Some("a"), Some("5"), Some("it's"), Some("'")]),
        ("SELECT 'a'\n\t'b''c'\r'd'", &[Some("ab'cd")]),
        ("SELECT E'a', E'\\n', $$x$$, $t$y$t$", &[Some("a"), None, Some("x"), Some("y")]),
        ("SELECT B'1', N'a'", &[None, None]),
        ("SELECT '', $$$$", &[Some(""), Some("")]),
    ];
    for (text, want) in cases {
        let want: Vec<Option<String>> = want.iter().map(|value| value.map(str::to_owned)).collect();
        assert_eq!(literals(text), want, "{text}");
    }
}

#[test]
fn slots_past_the_inline_ones_are_found() {
    let values: Vec<String> = (0..100).map(|n| format!("'v{n}'")).collect();
    let text = format!("SELECT {}", values.join(",   "));
    let lexed = Lexed::new(&text);
    for n in 0..100_u16 {
        assert_eq!(lexed.literal(n).as_deref(), Some(format!("v{n}").as_str()));
        let at = text.find(&format!("'v{n}'")).unwrap();
        assert_eq!(lexed.slot_at(at), Some((n, SlotKind::Plain)));
        assert_eq!(lexed.slot_at(at + 1), None);
    }
    assert_eq!(lexed.literal(100), None);
    assert_eq!(key(&text), format!("SELECT {}", vec!["<s>"; 100].join(", ")));
}

#[test]
fn hints_count_before_and_after_the_statement() {
    let cases = [
        ("SELECT 1", Ok(None)),
        ("/* hospital_id='a' */ SELECT 1", Ok(Some("a"))),
        ("SELECT 1; /* hospital_id='a' */ ; -- x", Ok(Some("a"))),
        ("SELECT 1 /* hospital_id='a', b='c\\'d' */", Ok(Some("a"))),
        ("SELECT 1 /* x_hospital_id='a' */", Ok(None)),
        ("SELECT 1 /* hospital_id='a' b */", Ok(None)),
        ("SELECT 1 /* hospital_id='a */", Ok(None)),
        ("SELECT /* hospital_id='a' */ 1", Ok(None)),
        ("/* hospital_id='a' */ SELECT 1 /* hospital_id='b' */", Err(())),
        ("/* hospital_id='a' */ SELECT 1 /* hospital_id='a' */", Ok(Some("a"))),
        ("/* hospital_id='a' */ SELECT /* hospital_id='b' */ 1", Ok(Some("a"))),
    ];
    for (text, want) in cases {
        assert_eq!(Lexed::new(text).hint(), want, "{text}");
    }
    let many = "/* hospital_id='a' */".repeat(50);
    assert_eq!(Lexed::new(&many).hint(), Err(()));
}

#[test]
fn many_comments_with_a_hint_are_looked_beyond_once() {
    // Looking beyond each of them would take some 10^11 steps.
    let comments = "/* hospital_id='a' */".repeat(100_000);
    assert_eq!(Lexed::new(&format!("SELECT {comments} 1")).hint(), Ok(None));
    assert_eq!(Lexed::new(&format!("SELECT 1 {comments}")).hint(), Err(()));
    let cases = [
        ("SELECT /* hospital_id='a' */ 1 /* hospital_id='b' */", Ok(Some("b"))),
        (
            "SELECT /* hospital_id='a' *//* hospital_id='c' */ 1 /* hospital_id='b' */",
            Ok(Some("b")),
        ),
    ];
    for (text, want) in cases {
        assert_eq!(Lexed::new(text).hint(), want, "{text}");
    }
}

#[test]
fn many_literals_are_not_too_many() {
    let text = format!("SELECT {}", vec!["1"; 70_000].join(","));
    let lexed = Lexed::new(&text);
    assert_eq!(lexed.slot_count(), SLOTS_MAX);
    assert_eq!(key(&text), text);
}

proptest! {
    /// Any text is lexed without a panic, and its pieces are bounded by it.
    #[test]
    fn any_text(text in "[ -~\\n\u{e9}]{0,80}") {
        let lexed = Lexed::new(&text);
        let mut length = 0;
        lexed.each_piece(|piece| length += piece.len());
        prop_assert!(length <= text.len() + 1);
        for slot in 0..lexed.slot_count() {
            let _ = lexed.literal(slot as u16);
        }
        let _ = lexed.hint();
    }

    /// Texts of the characters that matter most.
    #[test]
    fn any_punctuation(text in "['\"$/*\\-\\\\eEuU&xbn1.; \\n(]{0,40}") {
        let text = format!("SELECT {text}");
        let lexed = Lexed::new(&text);
        let mut pieces = Vec::new();
        lexed.each_piece(|piece| pieces.extend_from_slice(piece));
        prop_assert!(pieces.len() <= text.len());
        let _ = lexed.hint();
    }
}
