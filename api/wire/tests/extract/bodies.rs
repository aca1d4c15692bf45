//! Bodies to read: of the right shape, nearly so, and damaged.

use proptest::prelude::*;

/// White space, seldom any.
fn space() -> impl Strategy<Value = String> {
    prop_oneof![8 => Just(String::new()), 1 => "[ \\n\\t\\r]{1,3}"]
}

/// A JSON string as it stands, with whatever escapes and faults.
fn string() -> impl Strategy<Value = Vec<u8>> {
    let plain = prop_oneof![
        6 => "[ -~é世😀]{0,20}".prop_map(|text| text.replace(['"', '\\'], "'").into_bytes()),
        2 => (200usize..700, "[a-zé]").prop_map(|(times, text)| text.repeat(times).into_bytes()),
        4 => prop::sample::select(vec![r"\n", r#"\""#, r"\\", r"\/", r"\b", r"\f", r"\r", r"\t"]).prop_map(|text| text.as_bytes().to_vec()),
        3 => any::<char>().prop_map(|c| c.encode_utf16(&mut [0; 2]).iter().flat_map(|unit| format!("\\u{unit:04x}").into_bytes()).collect()),
        1 => prop::sample::select(vec![r"\ud83d", r"\uDE00", r"\ud83d\ud83d\ude00", r"\ud83dx", r"\ud83d\n", r"\u00E9", r"\ud83D\uDe00"]).prop_map(|text| text.as_bytes().to_vec()),
    ];
    let faulty = prop::sample::select(vec![
        &b"\xff"[..],
        b"\xe4\xb8",
        b"\xe4\\n\xb8\x96",
        b"\xed\xa0\x80",
        b"\x01",
        b"\n",
        b"\\q",
        b"\\u12",
        b"\\u12\\n",
        b"\\u12g4",
    ]);
    let piece = prop_oneof![400 => plain, 1 => faulty.prop_map(<[u8]>::to_vec)];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| [b"\"", &pieces.concat()[..], b"\""].concat())
}

fn text(of: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(of).prop_map(|text| text.as_bytes().to_vec())
}

/// Any value.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        4 => string(),
        2 => text(&["null", "true", "false", "0", "-1.5e+3", "12345678901234567890", "1e999", "[]", "{}", "[ ]", "{ }"]),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| prop_oneof![list(inner.clone()), object(any_key(), inner)])
}

/// Any key, not so long that it is refused.
fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => string().prop_map(|mut key| {
            if key.len() > 1000 {
                key = b"\"long\"".to_vec();
            }
            key
        }),
        1 => text(&[r#""text""#, r#""tex\u0074""#, r#""r\u006fle""#, r#""content""#, r#""m\u006fdel""#, r#""messages""#]),
    ]
}

fn list(item: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((space(), item, space()), 0..4).prop_map(|items| {
        let items: Vec<Vec<u8>> =
            items.into_iter().map(|(a, item, b)| [a.as_bytes(), &item, b.as_bytes()].concat()).collect();
        [b"[", &items.join(&b","[..])[..], b"]"].concat()
    })
}

/// An object of members as they come.
fn object(
    key: impl Strategy<Value = Vec<u8>>,
    value: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((key, value), 0..4).prop_flat_map(members)
}

fn members(members: Vec<(Vec<u8>, Vec<u8>)>) -> impl Strategy<Value = Vec<u8>> {
    let spaces = prop::collection::vec((space(), space(), space(), space()), members.len());
    (Just(members), spaces).prop_map(|(members, spaces)| {
        let members: Vec<Vec<u8>> = members
            .into_iter()
            .zip(spaces)
            .map(|((key, value), (a, b, c, d))| {
                [a.as_bytes(), &key, b.as_bytes(), b":", c.as_bytes(), &value, d.as_bytes()].concat()
            })
            .collect();
        [b"{", &members.join(&b","[..])[..], b"}"].concat()
    })
}

/// Some of these members, once or seldom twice, in any order.
fn some_of(
    all: Vec<(&'static str, BoxedStrategy<Vec<u8>>)>,
    others: usize,
) -> impl Strategy<Value = Vec<u8>> {
    let count = all.len();
    let chosen = prop::sample::subsequence(all, 0..=count).prop_shuffle();
    let chosen = chosen.prop_flat_map(|chosen| {
        chosen
            .into_iter()
            .map(|(key, value)| (Just(key.as_bytes().to_vec()), value).boxed())
            .collect::<Vec<_>>()
    });
    let others = prop::collection::vec((any_key(), value()), 0..=others);
    (chosen, others).prop_flat_map(|(mut chosen, others)| {
        chosen.extend(others);
        Just(chosen).prop_shuffle().prop_flat_map(members)
    })
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let object = some_of(
        vec![
            (r#""type""#, text(&[r#""text""#, r#""image_url""#, r#""input_audio""#]).boxed()),
            (r#""text""#, prop_oneof![6 => string(), 1 => value()].boxed()),
            (r#""image_url""#, value().boxed()),
        ],
        1,
    );
    let twice = some_of(
        vec![
            (r#""text""#, prop_oneof![3 => string(), 1 => value()].boxed()),
            (r#""tex\u0074""#, prop_oneof![3 => string(), 1 => value()].boxed()),
            (r#""\ud800""#, string().boxed()),
        ],
        0,
    );
    prop_oneof![8 => object, 3 => twice, 2 => list(string()), 2 => value()]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => string(), 4 => list(part()), 1 => value()]
}

fn role() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        50 => text(&[r#""system""#, r#""user""#, r#""assistant""#, r#""tool""#, r#""developer""#, r#""us\u0065r""#, r#""""#]),
        1 => string(),
        1 => text(&["null", "1", r#""\ud800""#]),
    ]
}

fn turn() -> impl Strategy<Value = Vec<u8>> {
    let object = some_of(
        vec![
            (r#""role""#, role().boxed()),
            (r#""content""#, content().boxed()),
            (r#""tool_calls""#, value().boxed()),
        ],
        1,
    );
    let usual = (role(), content())
        .prop_map(|(role, content)| [b"{\"role\": ", &role[..], b", \"content\": ", &content, b"}"].concat());
    let list =
        (role(), content()).prop_map(|(role, content)| [b"[", &role[..], b",", &content, b"]"].concat());
    prop_oneof![30 => usual, 30 => object, 3 => list, 1 => value()]
}

fn messages() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![30 => list(turn()), 1 => value()]
}

/// A body of chat's or a completion's shape, more or less.
pub(crate) fn chat() -> impl Strategy<Value = Vec<u8>> {
    some_of(
        vec![
            (r#""model""#, prop_oneof![30 => text(&[r#""m""#, r#""org/\u006d""#]), 1 => string(), 1 => text(&["null", "3"])].boxed()),
            (r#""tools""#, prop_oneof![3 => list(value()), 1 => value()].boxed()),
            (r#""messages""#, messages().boxed()),
            (r#""prompt""#, prop_oneof![3 => string(), 1 => value()].boxed()),
            (r#""n""#, text(&["1", "2", "null", "1.0"]).boxed()),
        ],
        2,
    )
}

/// A body of a response's shape, more or less.
pub(crate) fn response() -> impl Strategy<Value = Vec<u8>> {
    let item = some_of(
        vec![
            (r#""type""#, text(&[r#""message""#, r#""function_call""#]).boxed()),
            (r#""role""#, role().boxed()),
            (r#""content""#, content().boxed()),
            (r#""arguments""#, string().boxed()),
        ],
        1,
    );
    some_of(
        vec![
            (r#""model""#, text(&[r#""m""#, r#""org/\u006d""#]).boxed()),
            (r#""tools""#, list(value()).boxed()),
            (r#""instructions""#, prop_oneof![4 => string(), 1 => value()].boxed()),
            (r#""previous_response_id""#, string().boxed()),
            (r#""input""#, prop_oneof![2 => string(), 4 => list(item), 1 => value()].boxed()),
        ],
        1,
    )
}

/// A body with some of its bytes changed, left out or doubled.
pub(crate) fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => prop::sample::select(b"{}[]\",:\\u0e-. \n\xff\x01nt".to_vec()),
        1 => any::<u8>(),
    ];
    let change = (any::<prop::sample::Index>(), byte, 0..4u8);
    (chat(), prop::collection::vec(change, 1..4)).prop_map(|(mut body, changes)| {
        for (at, byte, how) in changes {
            let at = at.index(body.len() + 1);
            match how {
                0 => body.insert(at, byte),
                1 => body.truncate(at),
                2 if at < body.len() => drop(body.remove(at)),
                _ if at < body.len() => body[at] = byte,
                _ => body.push(byte),
            }
        }
        body
    })
}
