use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use strata_wire::claims::Claim;

use super::*;

const SIZE: usize = 4;

/// A hash that stands for these tokens in this scope: of a byte block, or as vLLM names a token block.
fn hashed(scope: &str, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (scope, tokens).hash(&mut hasher);
    hasher.finish()
}

/// A prompt whose byte blocks end after each six tokens.
fn prompt(scope: &str, tokens: &[u32]) -> Tokenised {
    let claims = (1..=tokens.len() / 6).map(|i| {
        let hash = BlockHash(hashed(scope, &tokens[..6 * i]));
        Claim { hash, tokens: 6 * i as u32 }
    });
    Tokenised { scope: scope.to_owned(), adapter: None, tokens: tokens.to_vec(), claims: claims.collect() }
}

/// Blocks `from..to` of a prompt, as they are told.
fn stored(scope: &str, tokens: &[u32], from: usize, to: usize, medium: Medium) -> batch::Stored {
    let name = |upto: usize| Name::Number(hashed(scope, &tokens[..upto * SIZE]));
    let salt = |block: usize| if block == 0 && !scope.is_empty() { vec![scope.to_owned()] } else { vec![] };
    batch::Stored {
        names: (from + 1..=to).map(name).collect(),
        parent: (from > 0).then(|| name(from)),
        tokens: tokens[from * SIZE..to * SIZE].to_vec(),
        block_size: SIZE,
        adapter: None,
        medium,
        extra: Some((from..to).map(salt).collect()),
        group: 0,
        whole: true,
    }
}

fn removed(scope: &str, tokens: &[u32], block: usize, medium: Medium) -> Event {
    let names = vec![Name::Number(hashed(scope, &tokens[..(block + 1) * SIZE]))];
    Event::Removed(batch::Removed { names, medium, group: 0 })
}

/// What is told, added up.
#[derive(Debug, Default)]
struct Index(HashMap<(BlockHash, Medium), u32>);

impl Index {
    fn hear(&mut self, told: Told) {
        match told {
            Told::Stored(s) => drop(self.0.insert((s.hash, s.medium), s.tokens)),
            Told::Removed(r) => assert!(self.0.remove(&(r.hash, r.medium)).is_some(), "it was there"),
        }
    }

    /// Tokens of a prompt by its deepest byte block that is there.
    fn of(&self, prompt: &Tokenised) -> [u32; 3] {
        MEDIA.map(|medium| {
            let known = prompt.claims.iter().filter_map(|c| self.0.get(&(c.hash, medium)));
            known.max().copied().unwrap_or(0)
        })
    }
}

struct Rig {
    ledger: Ledger,
    index: Index,
}

impl Rig {
    fn new() -> Self {
        Self { ledger: Ledger::default(), index: Index::default() }
    }

    fn take(&mut self, event: &Event) -> usize {
        self.ledger.take(event, &mut |told| self.index.hear(told))
    }

    fn store(&mut self, scope: &str, tokens: &[u32], from: usize, to: usize) -> usize {
        self.take(&Event::Stored(stored(scope, tokens, from, to, Medium::Device)))
    }

    fn learn(&mut self, prompt: &Tokenised) {
        self.ledger.learn(prompt, &mut |told| self.index.hear(told));
    }
}

fn tokens(family: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| family * 1000 + i).collect()
}

#[test]
fn a_byte_block_is_there_with_the_token_blocks_inside_it() {
    let (mut rig, text) = (Rig::new(), tokens(1, 30));
    let asked = prompt("s", &text);
    rig.learn(&asked);
    assert!(!rig.ledger.can_learn() && rig.index.0.is_empty(), "it is not known how blocks are cut");
    assert_eq!(rig.store("s", &text, 0, 3), 0);
    rig.learn(&asked);
    // 12 of 12 tokens; 16 of 18 are not there yet.
    assert_eq!(rig.index.of(&asked), [12, 0, 0]);
    rig.store("s", &text, 3, 7);
    assert_eq!(rig.index.of(&asked), [28, 0, 0]);
    // Another scope's blocks with the same tokens are others.
    let other = prompt("other", &text);
    rig.learn(&other);
    assert_eq!(rig.index.of(&other), [0; 3]);
    // One in the middle is gone, then back.
    rig.take(&removed("s", &text, 3, Medium::Device));
    assert_eq!(rig.index.of(&asked), [12, 0, 0]);
    rig.store("s", &text, 3, 4);
    assert_eq!(rig.index.of(&asked), [28, 0, 0]);
    rig.take(&Event::Cleared);
    assert_eq!(rig.index.of(&asked), [0; 3]);
    assert!(rig.ledger.knows(&asked.chain()), "what the prompt told stays");
    rig.store("s", &text, 0, 7);
    assert_eq!(rig.index.of(&asked), [28, 0, 0]);
}

#[test]
fn copies_are_counted() {
    let (mut rig, text) = (Rig::new(), tokens(1, 12));
    let asked = prompt("", &text);
    // Two requests computed it side by side, and a connector copied it to the host's memory.
    rig.store("", &text, 0, 3);
    rig.store("", &text, 0, 3);
    rig.learn(&asked);
    let copied =
        batch::Stored { tokens: vec![], parent: None, extra: None, ..stored("", &text, 0, 3, Medium::Ram) };
    assert_eq!(rig.take(&Event::Stored(copied)), 0);
    for _ in 0..2 {
        assert_eq!(rig.index.of(&asked), [12, 0, 0]);
        for block in [2, 1, 0] {
            rig.take(&removed("", &text, block, Medium::Device));
        }
    }
    assert_eq!(rig.index.of(&asked), [0, 12, 0]);
    assert_eq!(rig.take(&removed("", &text, 2, Medium::Device)), 1, "there is none");
    rig.store("", &text, 0, 1);
    assert_eq!(rig.index.of(&asked), [4, 12, 0], "the rest must be fetched");
}

#[test]
fn what_follows_nothing_known_is_not_placed() {
    let (mut rig, text) = (Rig::new(), tokens(1, 24));
    rig.store("", &text, 0, 1);
    assert_eq!(rig.store("", &text, 3, 6), 3);
    let asked = prompt("", &text);
    rig.learn(&asked);
    assert_eq!(rig.index.of(&asked), [4, 0, 0]);
    let short = batch::Stored { tokens: text[4..10].to_vec(), ..stored("", &text, 1, 3, Medium::Device) };
    assert_eq!(rig.take(&Event::Stored(short)), 2, "not as many tokens as its blocks have");
}

#[test]
fn images_and_adapters_make_other_blocks_of_the_same_tokens() {
    let (mut rig, text) = (Rig::new(), tokens(1, 24));
    let mut event = stored("", &text, 0, 6, Medium::Device);
    event.extra.as_mut().unwrap()[2] = vec!["[image, 8]".into()];
    rig.take(&Event::Stored(event));
    let asked = prompt("", &text);
    rig.learn(&asked);
    assert_eq!(rig.index.of(&asked), [4, 0, 0], "up to the image");
    let adapted = Tokenised { adapter: Some("sql".into()), ..asked.clone() };
    let mut rig = Rig::new();
    let mut event = stored("", &text, 0, 6, Medium::Device);
    event.adapter = Some("sql".into());
    event.extra.as_mut().unwrap().iter_mut().for_each(|keys| keys.insert(0, "sql".into()));
    rig.take(&Event::Stored(event));
    rig.learn(&asked);
    assert_eq!(rig.index.of(&asked), [0; 3]);
    rig.learn(&adapted);
    assert_eq!(rig.index.of(&adapted), [24, 0, 0]);
}

#[test]
fn one_cache_of_several_is_followed() {
    let (mut rig, text) = (Rig::new(), tokens(1, 24));
    let window = batch::Stored { group: 1, whole: false, ..stored("", &text, 0, 6, Medium::Device) };
    rig.take(&Event::Stored(window));
    assert!(!rig.ledger.can_learn());
    rig.store("", &text, 0, 6);
    rig.learn(&prompt("", &text));
    let gone = |group| {
        let names = vec![Name::Number(hashed("", &text[..SIZE]))];
        Event::Removed(batch::Removed { names, medium: Medium::Device, group })
    };
    rig.take(&gone(1));
    assert_eq!(rig.index.of(&prompt("", &text)), [24, 0, 0]);
    rig.take(&gone(0));
    assert_eq!(rig.index.of(&prompt("", &text)), [0; 3]);
}

/// Versions that do not tell salts: tokens alone decide.
#[test]
fn where_salts_are_not_told_scopes_are_not_told_apart() {
    let (mut rig, text) = (Rig::new(), tokens(1, 24));
    rig.take(&Event::Stored(batch::Stored { extra: None, ..stored("a", &text, 0, 6, Medium::Device) }));
    rig.learn(&prompt("b", &text));
    assert_eq!(rig.index.of(&prompt("b", &text)), [24, 0, 0]);
}

#[test]
fn another_run_may_cut_blocks_otherwise() {
    let (mut rig, text) = (Rig::new(), tokens(1, 48));
    rig.store("", &text, 0, 6);
    rig.learn(&prompt("", &text));
    let mut larger = stored("", &text, 0, 6, Medium::Device);
    (larger.block_size, larger.tokens) = (2 * SIZE, text.clone());
    rig.take(&Event::Stored(larger.clone()));
    assert_eq!(rig.index.of(&prompt("", &text)), [24, 0, 0], "in one run they are cut alike");
    rig.ledger.begin_anew(&mut |told| rig.index.hear(told));
    rig.take(&Event::Stored(larger));
    assert!(!rig.ledger.knows(&prompt("", &text).chain()), "tokens of a prompt must be laid anew");
    rig.learn(&prompt("", &text));
    assert_eq!(rig.index.of(&prompt("", &text)), [48, 0, 0]);
}

#[test]
fn what_is_known_is_bounded() {
    let mut rig = Rig::new();
    rig.store("", &tokens(0, 4), 0, 1);
    for family in 1..=3 {
        let tokens: Vec<u32> = (0..700_000).map(|i| family * 1_000_000 + i).collect();
        let claim = |i: u32| Claim { hash: BlockHash(hashed("", &[family, i])), tokens: 6 * i };
        let claims = (1..=700_000 / 6).map(claim).collect();
        rig.learn(&Tokenised { scope: String::new(), adapter: None, tokens, claims });
    }
    let (nodes, claims) = rig.ledger.sizes();
    assert!(claims <= MAX_CLAIMS, "{claims}");
    assert!(nodes <= 1 + 2 * 175_000 && nodes > 100_000, "of what is forgotten nothing stays: {nodes}");
    // A thousand texts that differ behind the first block name that block.
    let mut rig = Rig::new();
    rig.store("", &tokens(9, 4), 0, 1);
    for i in 0..1000u32 {
        let mut text = tokens(9, 4);
        text.extend([i, i]);
        rig.learn(&prompt("", &text));
    }
    assert_eq!(rig.index.0.len(), 64, "the newest of them");
}

#[derive(Clone, Debug)]
enum Act {
    Store { prompt: usize, from: usize, to: usize, medium: usize },
    Remove { prompt: usize, block: usize, medium: usize },
    Learn(usize),
    Clear,
    Anew,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0usize..6, 0usize..6, 1usize..7, 0usize..3).prop_map(|(prompt, from, more, medium)| Act::Store {
            prompt, from, to: (from + more).min(6), medium,
        }),
        4 => (0usize..6, 0usize..6, 0usize..3).prop_map(|(prompt, block, medium)| Act::Remove { prompt, block, medium }),
        4 => (0usize..6).prop_map(Act::Learn),
        1 => Just(Act::Clear),
        1 => Just(Act::Anew),
    ]
}

/// Six prompts that share beginnings, in two scopes.
fn prompts() -> Vec<(&'static str, Vec<u32>)> {
    let shared = |family: u32, len: usize| {
        let mut all = tokens(1, len);
        all.extend(tokens(family, 24 - len));
        all
    };
    vec![
        ("", shared(2, 24)),
        ("", shared(2, 9)),
        ("", shared(3, 9)),
        ("", shared(4, 16)),
        ("s", shared(2, 9)),
        ("s", shared(5, 3)),
    ]
}

proptest! {
    /// Whatever happens: a byte block of a prompt that was learnt is told exactly when all token blocks up
    /// to its end are somewhere, and in the slowest medium that one of them must come from. What is of no
    /// use is forgotten.
    #[test]
    fn what_is_told_is_what_is_there(acts in prop::collection::vec(act(), 1..120)) {
        let (mut rig, prompts) = (Rig::new(), prompts());
        // Whatever is told first tells how blocks are cut.
        rig.store("", &tokens(99, 4), 0, 1);
        let mut copies: BTreeMap<(u64, usize), u32> = BTreeMap::new();
        let mut learnt: Vec<usize> = Vec::new();
        for act in acts {
            match act {
                Act::Store { prompt, from, to, medium } => {
                    let (scope, text) = &prompts[prompt];
                    let name = |block: usize| hashed(scope, &text[..block * SIZE]);
                    let placed = from == 0 || (0..3).any(|m| copies.contains_key(&(name(from), m)));
                    let event = Event::Stored(stored(scope, text, from, to, MEDIA[medium]));
                    prop_assert_eq!(rig.take(&event), if placed { 0 } else { to - from });
                    for block in from..if placed { to } else { from } {
                        *copies.entry((name(block + 1), medium)).or_default() += 1;
                    }
                }
                Act::Remove { prompt, block, medium } => {
                    let (scope, text) = &prompts[prompt];
                    let key = (hashed(scope, &text[..(block + 1) * SIZE]), medium);
                    let held = copies.get(&key).copied().unwrap_or(0);
                    prop_assert_eq!(rig.take(&removed(scope, text, block, MEDIA[medium])), usize::from(held == 0));
                    match held {
                        0 | 1 => drop(copies.remove(&key)),
                        more => drop(copies.insert(key, more - 1)),
                    }
                }
                Act::Learn(at) => {
                    rig.learn(&prompt(prompts[at].0, &prompts[at].1));
                    learnt.push(at);
                }
                Act::Clear | Act::Anew => {
                    if matches!(act, Act::Clear) {
                        rig.take(&Event::Cleared);
                    } else {
                        rig.ledger.begin_anew(&mut |told| rig.index.hear(told));
                    }
                    copies.clear();
                }
            }
            let mut expected: HashMap<(BlockHash, Medium), u32> = HashMap::new();
            for at in &learnt {
                let (scope, text) = &prompts[*at];
                let mut last = 0;
                for claim in prompt(scope, text).claims {
                    let blocks = claim.tokens as usize / SIZE;
                    let fastest = |block: usize| {
                        let name = hashed(scope, &text[..block * SIZE]);
                        (0..3).find(|m| copies.contains_key(&(name, *m)))
                    };
                    let slowest = (1..=blocks).map(fastest).try_fold(0, |slowest, m| Some(slowest.max(m?)));
                    if let Some(medium) = slowest.filter(|_| blocks > last) {
                        expected.insert((claim.hash, MEDIA[medium]), (blocks * SIZE) as u32);
                    }
                    last = last.max(blocks);
                }
            }
            prop_assert_eq!(&rig.index.0, &expected);
        }
        rig.ledger.forget_all(&mut |told| rig.index.hear(told));
        rig.ledger.begin_anew(&mut |told| rig.index.hear(told));
        prop_assert_eq!(rig.ledger.sizes(), (0, 0));
    }
}
