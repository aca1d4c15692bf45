//! Our tokens against those of Hugging Face and llama.cpp (see scripts/tokenizer_golden.py).

use serde::Deserialize;
use strata_engine::model::load::{GgufTokenizer, SpecialTokens, TokenizerSource, load};
use strata_engine::tokenizer::{Detokenizer, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    smollm: Vec<Case>,
    pre: std::collections::BTreeMap<String, Vec<Case>>,
    spm: Spm,
}

#[derive(Deserialize)]
struct Spm {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../data/tokenizer.json")).unwrap()
}

fn check(name: &str, tokenizer: &Tokenizer, cases: &[Case]) {
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{name}: {:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false), case.text, "{name}: {:?}", case.ids);
        let mut detokenizer = Detokenizer::new(false);
        let pieces: Vec<String> = case.ids.iter().map(|id| detokenizer.push(tokenizer, *id)).collect();
        assert_eq!(pieces.concat() + &detokenizer.flush(), case.text, "{name}: piece by piece");
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{name}: a character was cut in {pieces:?}");
    }
}

fn real() -> Option<(GgufTokenizer, SpecialTokens)> {
    let model = load(&crate::real_model::real_model()?).unwrap();
    let TokenizerSource::Gguf(gguf) = model.tokenizer_source else { panic!("the test model is a GGUF file") };
    Some((gguf, model.special))
}

#[test]
fn smollm_is_hugging_faces() {
    let Some((gguf, special)) = real() else { return };
    let tokenizer = Tokenizer::build(&TokenizerSource::Gguf(gguf), &special).unwrap();
    check("smollm", &tokenizer, &golden().smollm);
    assert_eq!(tokenizer.vocab_size(), 49152);
    let skipped = tokenizer.decode(&tokenizer.encode("<|im_start|>user<|im_end|>", false).unwrap(), true);
    assert_eq!(skipped, "user");
}

#[test]
fn other_pre_tokenizers_are_llama_cpps() {
    let Some((gguf, special)) = real() else { return };
    for (pre, cases) in golden().pre {
        let source = TokenizerSource::Gguf(GgufTokenizer { pre: pre.clone(), ..gguf.clone() });
        check(&pre, &Tokenizer::build(&source, &special).unwrap(), &cases);
    }
}

fn small() -> GgufTokenizer {
    let Spm { tokens, types, scores, .. } = golden().spm;
    GgufTokenizer {
        model: "llama".into(),
        tokens,
        token_types: types,
        scores,
        unknown: Some(0),
        ..GgufTokenizer::default()
    }
}

#[test]
fn scored_vocabularies_are_llama_cpps() {
    let special = SpecialTokens { bos: Some(1), eos: vec![2], add_bos: true, add_eos: false };
    let tokenizer = Tokenizer::build(&TokenizerSource::Gguf(small()), &special).unwrap();
    check("llama", &tokenizer, &golden().spm.cases);
    assert_eq!(tokenizer.encode("the", true).unwrap()[0], 1);
    assert_ne!(tokenizer.encode("the", false).unwrap()[0], 1);
}

#[test]
fn what_is_not_known_is_said() {
    let special = SpecialTokens::default();
    let error = |source| Tokenizer::build(&source, &special).unwrap_err().to_string();
    let gguf = |change: fn(&mut GgufTokenizer)| {
        let mut gguf = small();
        change(&mut gguf);
        TokenizerSource::Gguf(gguf)
    };
    insta::assert_snapshot!(error(gguf(|g| g.model = "t5".into())), @"the tokenizer model `t5` is not supported; supported are gpt2 (byte-level BPE) and llama");
    insta::assert_snapshot!(error(gguf(|g| { g.model = "gpt2".into(); g.pre = "tekken".into() })), @"the pre-tokenizer `tekken` is not supported; supported are default, gpt-2, llama-bpe, llama3, qwen2, smollm");
    insta::assert_snapshot!(error(gguf(|g| { g.model = "gpt2".into(); g.merges = vec!["ab".into()] })), @"the tokenizer cannot be built: merge 0 is `ab`: expected two tokens with a space between");
    insta::assert_snapshot!(error(gguf(|g| g.scores.truncate(3))), @"the tokenizer cannot be built: a `llama` vocabulary needs a score for each token: 354 tokens, 3 scores");
    insta::assert_snapshot!(error(gguf(|g| g.tokens.clear())), @"the tokenizer cannot be built: the file holds no tokens");
    let beyond = SpecialTokens { eos: vec![2, u32::MAX], ..SpecialTokens::default() };
    let source = TokenizerSource::Gguf(small());
    insta::assert_snapshot!(Tokenizer::build(&source, &beyond).unwrap_err(), @"the tokenizer cannot be built: token 4294967295 begins or ends a text, and the vocabulary has ids below 354 only");
    let missing = TokenizerSource::HuggingFace {
        tokenizer_json: "/nonexistent/tokenizer.json".into(),
        tokenizer_config: serde_json::Value::Null,
    };
    insta::assert_snapshot!(error(missing), @"cannot read the tokenizer /nonexistent/tokenizer.json: No such file or directory (os error 2)");
}
