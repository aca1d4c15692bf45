//! Texts and tokens of a request, as inputs of the model.

use std::sync::Arc;

use serde_json::Value;
use strata_hop::Fault;
use strata_wire::ErrorKind;

use super::super::members::{Members, whole, wrong};
use crate::backend::vectors::TextInput;
use crate::embed::Embedder;
use crate::model::vectors::VectorOutput;
use crate::runtime::MAX_TEXT_BYTES;

/// Texts in one request, as OpenAI has it.
const MOST_TEXTS: usize = 2048;

/// What a request asks to be made one vector of.
pub(super) enum Text {
    Words(String),
    Tokens(Vec<u32>),
    Pair(String, String),
}

/// Checks that the request asks for the model that is served here, and for nothing that would change the
/// answer and has no effect.
pub(super) fn check(members: &Members, embedder: &Embedder) -> Result<(), Fault> {
    let name = &embedder.card().name;
    if let Some(asked) = members.text("model")?.filter(|asked| asked != name) {
        return Err(super::submit::no_such_model(asked, name));
    }
    // Requests run as they come.
    members.whole("priority", i64::MIN..=i64::MAX)?;
    members.unbuilt("embed_dtype", |v| v == "float32", "vectors are float32: remove it")?;
    members.unbuilt(
        "endianness",
        |v| v == "native" || v == "little",
        "vectors are little-endian: remove it",
    )?;
    members.unbuilt("truncation_side", |v| v == "right", "texts are cut at their end: remove it")?;
    let activated = match &embedder.info().output {
        VectorOutput::Embedding(embedding) => embedding.normalise,
        VectorOutput::Classes { .. } => true,
    };
    for name in ["normalize", "use_activation"] {
        if members.boolean(name)?.is_some_and(|asked| asked != activated) {
            let message = format!(
                "`{name}` can only be {activated} for this model, whose files say how it ends; remove it"
            );
            return Err(Fault::invalid_param(name, message));
        }
    }
    Ok(())
}

/// The member `input`: a text, several, an array of token ids, or several of those.
pub(super) fn read(members: &Members) -> Result<Vec<Text>, Fault> {
    const WANTED: &str = "a text, an array of texts, an array of token ids, or an array of those";
    let Some(input) = members.get("input") else {
        return Err(Fault::invalid_param("input", format!("`input` is missing: send {WANTED}")));
    };
    let texts = match input {
        Value::String(text) => vec![Text::Words(text.clone())],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            vec![Text::Tokens(token_ids("input", items)?)]
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, item)| match item {
                Value::String(text) => Ok(Text::Words(text.clone())),
                Value::Array(ids) => Ok(Text::Tokens(token_ids(&format!("input[{i}]"), ids)?)),
                other => Err(wrong(&format!("input[{i}]"), "a text or an array of token ids", other)),
            })
            .collect::<Result<_, _>>()?,
        other => return Err(wrong("input", WANTED, other)),
    };
    bounded("input", texts.len())?;
    Ok(texts)
}

/// Refuses none and too many.
pub(super) fn bounded(name: &str, count: usize) -> Result<(), Fault> {
    match count {
        0 => Err(Fault::invalid_param(name, format!("`{name}` is empty: send at least one text"))),
        1..=MOST_TEXTS => Ok(()),
        _ => {
            let message =
                format!("`{name}` has {count} texts and at most {MOST_TEXTS} are taken; send fewer");
            Err(Fault::invalid_param(name, message))
        }
    }
}

fn token_ids(name: &str, items: &[Value]) -> Result<Vec<u32>, Fault> {
    let id = |(i, item): (usize, &Value)| {
        whole(item, &(0..=i64::from(u32::MAX)))
            .map(|id| id as u32)
            .ok_or_else(|| wrong(&format!("{name}[{i}]"), "a token id", item))
    };
    items.iter().enumerate().map(id).collect()
}

/// Tokenises, on a thread where work may take its time, and cuts to `truncate_prompt_tokens` if the
/// request says so.
pub(super) async fn encode(
    embedder: &Arc<Embedder>,
    members: &Members,
    texts: Vec<Text>,
    param: &'static str,
) -> Result<Vec<TextInput>, Fault> {
    let most = embedder.max_len() as i64;
    let cut = members.whole("truncate_prompt_tokens", -1..=most)?.map(|cut| {
        // vLLM's form of "as much as fits".
        usize::try_from(cut).unwrap_or(embedder.max_len())
    });
    let special = members.boolean("add_special_tokens")?.unwrap_or(true);
    let len = |text: &Text| match text {
        Text::Words(text) => text.len(),
        Text::Pair(a, b) => a.len() + b.len(),
        Text::Tokens(_) => 0,
    };
    let bytes: usize = texts.iter().map(len).sum();
    if bytes > MAX_TEXT_BYTES {
        let message =
            format!("the texts are {bytes} bytes and at most {MAX_TEXT_BYTES} are tokenised; send less");
        return Err(Fault::new(ErrorKind::TooLarge, message).param(param));
    }
    let failed = || Fault::new(ErrorKind::Internal, "the tokenizer failed on this text; this is a defect");
    let room = embedder.text_room().clone().acquire_many_owned(bytes as u32).await.map_err(|_| failed())?;
    let embedder = embedder.clone();
    let work = move || {
        let inputs: Result<Vec<_>, Fault> = texts
            .into_iter()
            .enumerate()
            .map(|(i, text)| encode_one(&embedder, text, special, cut, &format!("{param}[{i}]")))
            .collect();
        // Only now, not when the client leaves: the work cannot be stopped.
        drop(room);
        inputs
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| failed())?
}

fn encode_one(
    embedder: &Embedder,
    text: Text,
    special: bool,
    cut: Option<usize>,
    name: &str,
) -> Result<TextInput, Fault> {
    let tokenizer = embedder.tokenizer();
    let bad = |e: crate::tokenizer::TokenizerError| Fault::invalid_param(name, e.to_string());
    let mut input = match text {
        Text::Tokens(tokens) => {
            let mut tokens = tokens;
            tokens.truncate(cut.unwrap_or(usize::MAX));
            TextInput { tokens, second: None }
        }
        Text::Words(text) => {
            TextInput { tokens: tokenizer.encode(&text, special).map_err(bad)?, second: None }
        }
        Text::Pair(first, second) => {
            let (tokens, begin) = tokenizer.encode_pair(&first, &second).map_err(bad)?;
            TextInput { tokens, second: Some(begin) }
        }
    };
    if let Some(cut) = cut.filter(|cut| *cut < input.tokens.len()) {
        // The token that ends a text stays its end.
        let last = input.tokens.last().copied().filter(|last| special && tokenizer.is_special(*last));
        input.tokens.truncate(cut);
        if let (Some(last), Some(end)) = (last, input.tokens.last_mut()) {
            *end = last;
        }
    }
    let (len, most) = (input.tokens.len(), embedder.max_len());
    if len > most {
        let message = format!(
            "`{name}` has {len} tokens and this model takes at most {most}; shorten it, or set \
             `truncate_prompt_tokens`"
        );
        return Err(Fault::new(ErrorKind::ContextLengthExceeded, message).param(name));
    }
    if len == 0 {
        return Err(Fault::invalid_param(name, format!("`{name}` has no tokens")));
    }
    Ok(input)
}
