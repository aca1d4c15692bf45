use proptest::prelude::*;
use rmpv::Value;
use rmpv::encode::write_value;

use super::*;

fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_value(&mut bytes, value).unwrap();
    bytes
}

fn map(members: Vec<(&str, Value)>) -> Value {
    Value::Map(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

fn batch_of(events: Vec<Value>) -> Vec<u8> {
    packed(&Value::Array(vec![1.5.into(), Value::Array(events), 0.into()]))
}

fn hash(n: u8) -> Value {
    Value::Binary(vec![n; 32])
}

fn numbers(upto: u32) -> Value {
    Value::Array((0..upto).map(Value::from).collect())
}

fn one(events: Vec<Value>) -> Event {
    let mut read = read(&batch_of(events)).unwrap();
    assert_eq!((read.events.len(), read.unknown), (1, 0));
    read.events.remove(0)
}

#[test]
fn an_event_is_read_as_the_newest_version_packs_it() {
    let salted = Value::Array(vec![Value::Array(vec!["sql".into(), "salt".into()]), Value::Nil]);
    let event = map(vec![
        ("type", "BlockStored".into()),
        ("block_hashes", Value::Array(vec![hash(1), hash(2)])),
        ("parent_block_hash", Value::Nil),
        ("token_ids", numbers(8)),
        ("block_size", 4.into()),
        ("lora_id", 3.into()),
        ("medium", "CPU".into()),
        ("lora_name", "sql".into()),
        ("extra_keys", salted),
        ("group_idx", 1.into()),
        ("kv_cache_spec_kind", "full_attention".into()),
        ("session_id", "of a later version".into()),
    ]);
    let Event::Stored(stored) = one(vec![event]) else { panic!("stored") };
    assert_eq!(stored.names[1], Name::Bytes([2; 32].into()));
    assert_eq!((stored.parent, stored.tokens.len(), stored.block_size), (None, 8, 4));
    assert_eq!((stored.adapter.as_deref(), stored.medium), (Some("sql"), Medium::Ram));
    assert_eq!(stored.extra.unwrap(), [vec!["sql".to_owned(), "salt".to_owned()], vec![]]);
    assert_eq!((stored.group, stored.whole), (1, true));
}

/// As each version from the first on has packed it, in the order of its members.
#[test]
fn an_event_is_read_as_older_versions_packed_it() {
    let hashes = Value::Array(vec![7.into(), Value::from(-8)]);
    let first = ["BlockStored".into(), hashes.clone(), 6.into(), numbers(32), 16.into(), Value::Nil];
    let more: [Value; 5] = ["GPU".into(), "sql".into(), Value::Nil, 0.into(), "sliding_window".into()];
    for count in 0..=more.len() {
        let members = first.iter().chain(&more[..count]).cloned().collect();
        let Event::Stored(stored) = one(vec![Value::Array(members)]) else { panic!("stored") };
        assert_eq!(stored.names, [Name::Number(7), Name::Number(u64::MAX - 7)]);
        assert_eq!((stored.parent, stored.tokens.len()), (Some(Name::Number(6)), 32));
        assert_eq!((stored.medium, stored.extra), (Medium::Device, None));
        assert_eq!(stored.adapter.is_some(), count > 1);
        assert_eq!(stored.whole, count < 5, "a window is not the whole prompt");
    }
    let removed = |members: Vec<Value>| one(vec![Value::Array(members)]);
    let Event::Removed(old) = removed(vec!["BlockRemoved".into(), hashes.clone()]) else { panic!("removed") };
    assert_eq!((old.names.len(), old.medium), (2, Medium::Device));
    let Event::Removed(new) = removed(vec!["BlockRemoved".into(), hashes, "CPU".into(), 2.into()]) else {
        panic!("removed")
    };
    assert_eq!((new.medium, new.group), (Medium::Ram, 2));
    assert_eq!(one(vec![Value::Array(vec!["AllBlocksCleared".into()])]), Event::Cleared);
}

#[test]
fn what_is_not_known_is_passed_over_and_counted() {
    let cleared = map(vec![("type", "AllBlocksCleared".into())]);
    let later = map(vec![("type", "BlockMoved".into()), ("from", 1.into())]);
    let far = map(vec![
        ("type", "BlockRemoved".into()),
        ("block_hashes", Value::Array(vec![hash(1)])),
        ("medium", "MOON".into()),
    ]);
    let batch = read(&batch_of(vec![later, cleared, far])).unwrap();
    assert_eq!((batch.events, batch.unknown), (vec![Event::Cleared], 2));
}

#[test]
fn what_is_wrong_is_said() {
    let stored = |change: (&'static str, Value)| {
        let mut members = vec![
            ("type", Value::from("BlockStored")),
            ("block_hashes", Value::Array(vec![hash(1)])),
            ("token_ids", numbers(4)),
            ("block_size", 4.into()),
        ];
        members.retain(|(key, _)| *key != change.0);
        members.push(change);
        read(&batch_of(vec![map(members)])).unwrap_err().to_string()
    };
    assert_eq!(stored(("block_size", 0.into())), "stored blocks have no size");
    assert_eq!(stored(("block_hashes", Value::Nil)), "blocks have no hashes");
    assert_eq!(
        stored(("token_ids", Value::Array(vec![Value::from(1u64 << 40)]))),
        "a token id is no number of 32 bits"
    );
    assert_eq!(stored(("extra_keys", Value::Array(vec![]))), "extra keys are not one for each stored block");
    assert_eq!(stored(("type", Value::Nil)), "an event has no type");
    let message = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert_eq!(message(&packed(&Value::from(3))), "a batch is no array");
    assert_eq!(
        message(&packed(&Value::Array(vec![1.5.into()]))),
        "the second member of a batch is no list of events"
    );
    assert!(message(b"\xdd\xff\xff\xff\xff").starts_with("it is no MessagePack"));
    assert!(message(&[0x91; 4000]).starts_with("it is no MessagePack"), "as deep as one likes");
    assert_eq!(read(&vec![0; MAX_BYTES + 1]), Err(Malformed::TooLong));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Binary),
        prop::sample::select(vec![
            "BlockStored",
            "BlockRemoved",
            "AllBlocksCleared",
            "type",
            "GPU",
            "token_ids",
            "block_hashes",
            "block_size",
            "extra_keys"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            prop::collection::vec((inner.clone(), inner), 0..8).prop_map(Value::Map),
        ]
    })
}

proptest! {
    /// Whatever bytes come, and whatever they are packed of: it is read or refused.
    #[test]
    fn nothing_makes_it_fall_over(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        values in prop::collection::vec(any_value(), 0..6),
        cut in 0usize..200,
    ) {
        let _ = read(&bytes);
        let whole = batch_of(values);
        let _ = read(&whole);
        let _ = read(&whole[..cut.min(whole.len())]);
    }
}

/// What Strata's own engine packs, as its tests have it, too.
#[test]
fn the_engine_s_own_batch_is_read() {
    let text = include_str!("../../../../api/wire/tests/data/kv_events.hex").trim();
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
    let batch = read(&bytes).unwrap();
    let [Event::Stored(first), Event::Removed(removed), Event::Stored(last), Event::Cleared] =
        batch.events.as_slice()
    else {
        panic!("{batch:?}")
    };
    let name = |n: u8| Name::Bytes([n; 32].into());
    assert_eq!(first.names, [name(1), name(2)]);
    assert_eq!(first.extra, Some(vec![vec!["scope".to_owned()], vec![]]));
    assert_eq!((first.tokens.len(), first.block_size, first.group, first.whole), (32, 16, 0, true));
    assert_eq!((&removed.names, removed.medium, removed.group), (&vec![name(2)], Medium::Device, 0));
    assert_eq!((last.parent.as_ref(), &last.extra), (None, &Some(vec![vec![]])));
    assert_eq!(batch.unknown, 0);
}
