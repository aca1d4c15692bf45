//! Sampling and output options that chat and completions share.

use std::sync::Arc;

use serde_json::Value;
use strata_hop::Fault;
use strata_trace::ActiveSpan;

use super::members::{Bounds, Members, whole, wrong};
use super::submit::Cut;
use crate::runtime::{OutputRules, Structure};
use crate::sampling::{Penalties, SamplingParams, TokenMask};
use crate::tokenizer::Tokenizer;
use crate::transfer::TransferParams;

/// Stop texts in one request.
const MAX_STOPS: usize = 16;
/// Answers to one prompt.
pub(super) const MAX_N: i64 = 128;
/// Bad words in one request, and bytes of one.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 256;
/// Tokens with a bias in one request.
const MAX_BIASES: usize = 1024;

const NONE: fn(&Value) -> bool = |_| false;
const FALSE: fn(&Value) -> bool = |v| v == &Value::Bool(false);

/// What the answer is to be, but for its length.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) n: usize,
    pub(super) sampling: SamplingParams,
    pub(super) rules: OutputRules,
    pub(super) structure: Option<Structure>,
    pub(super) stream: Option<Streaming>,
    pub(super) tokens: TokenOptions,
    pub(super) cache_salt: Option<String>,
    pub(super) priority: i64,
    /// What is kept of the prompt here for another engine, or by another for this one.
    pub(super) transfer: TransferParams,
    /// Set where requests are traced.
    pub(super) span: Option<ActiveSpan>,
}

/// What is told of tokens, and how much of a prompt is read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenOptions {
    /// Whether the answer has the ids of its tokens.
    pub(super) ids: bool,
    /// Whether log probabilities call tokens by their ids, which are never ambiguous.
    pub(super) by_id: bool,
    /// Only this part of each prompt is read.
    pub(super) truncate: Option<Cut>,
}

/// How to stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Streaming {
    /// One last chunk with the usage.
    pub(super) usage: bool,
    /// The usage so far in every chunk.
    pub(super) continuous_usage: bool,
}

/// Reads the options; `logprobs` is read by the endpoint, `rules.max_tokens` is set once the prompt's
/// length is known.
pub(super) fn read(
    members: &Members,
    tokenizer: &Tokenizer,
    context: usize,
    logprobs: Option<usize>,
) -> Result<Options, Fault> {
    refuse_unbuilt(members)?;
    let n = members.whole("n", 1..=MAX_N)?.unwrap_or(1);
    let penalties = Penalties {
        frequency: members.number("frequency_penalty", Bounds::closed(-2.0, 2.0))?.unwrap_or(0.0),
        presence: members.number("presence_penalty", Bounds::closed(-2.0, 2.0))?.unwrap_or(0.0),
        repetition: members.number("repetition_penalty", Bounds::closed(0.01, 10.0))?.unwrap_or(1.0),
    };
    let sampling = SamplingParams {
        temperature: members.number("temperature", Bounds::closed(0.0, 2.0))?.unwrap_or(1.0),
        top_p: members.number("top_p", Bounds::above(0.0, 1.0))?.unwrap_or(1.0),
        top_k: members.whole("top_k", -1..=i64::MAX)?.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
        min_p: members.number("min_p", Bounds::closed(0.0, 1.0))?.unwrap_or(0.0),
        seed: match members.whole("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed as u64,
            None => uuid::Uuid::new_v4().as_u64_pair().0,
        },
        penalties,
        logit_bias: logit_bias(members, tokenizer)?,
        allowed: allowed_tokens(members, tokenizer)?,
        bad_words: bad_words(members, tokenizer)?,
        logprobs,
        prompt_logprobs: members.whole("prompt_logprobs", 0..=20)?.map(|top| top as usize),
    };
    let rules = OutputRules {
        max_tokens: 0,
        min_tokens: members.whole("min_tokens", 0..=i64::MAX)?.unwrap_or(0) as usize,
        ignore_eos: members.boolean("ignore_eos")?.unwrap_or(false),
        stop: stops(members)?,
        include_stop: members.boolean("include_stop_str_in_output")?.unwrap_or(false),
        stop_token_ids: token_ids(members, "stop_token_ids", tokenizer)?,
        keep_special: !members.boolean("skip_special_tokens")?.unwrap_or(true),
        marks: Arc::default(),
    };
    let options = Options {
        n: n as usize,
        sampling,
        rules,
        structure: None,
        stream: streaming(members)?,
        tokens: TokenOptions {
            ids: members.boolean("return_token_ids")?.unwrap_or(false),
            by_id: members.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
            truncate: truncation(members, context)?,
        },
        cache_salt: members.text("cache_salt")?.map(str::to_owned),
        transfer: transfer(members, n)?,
        span: None,
        priority: members.whole("priority", i64::MIN..=i64::MAX)?.unwrap_or(0),
    };
    if options.stream.is_some() && options.sampling.prompt_logprobs.is_some() {
        let message = "`prompt_logprobs` cannot be streamed: send it without `stream`";
        return Err(Fault::invalid_param("prompt_logprobs", message));
    }
    Ok(options)
}

/// How much of a prompt is read, in a context of so many tokens.
fn truncation(members: &Members, context: usize) -> Result<Option<Cut>, Fault> {
    let side = match members.text("truncation_side")? {
        None | Some("left") => Cut::Last,
        Some("right") => Cut::First,
        Some(_) => {
            let message = "`truncation_side` must be `left`, which keeps a prompt's end, or `right`";
            return Err(Fault::invalid_param("truncation_side", message));
        }
    };
    let name = "truncate_prompt_tokens";
    match members.whole(name, -1..=i64::MAX)? {
        Some(0) => {
            let message = format!("`{name}` must be at least 1, or -1 for the model's context");
            Err(Fault::invalid_param(name, message))
        }
        // Room for one token of the answer.
        Some(-1) => Ok(Some(side(context.saturating_sub(1)))),
        tokens => Ok(tokens.map(|tokens| side(tokens as usize))),
    }
}

/// Where the prompt is computed, when that is not where it is answered.
fn transfer(members: &Members, answers: i64) -> Result<TransferParams, Fault> {
    let name = "kv_transfer_params";
    let Some(given) = members.object(name)? else { return Ok(TransferParams::default()) };
    let params: TransferParams = serde_json::from_value(Value::Object(given.clone())).map_err(|e| {
        Fault::invalid_param(name, format!("`{name}` is not as vLLM's NixlConnector has it: {e}"))
    })?;
    if params.do_remote_decode && params.do_remote_prefill {
        let message =
            format!("`{name}` asks to keep the prompt and to fetch it; one of the two must be false");
        return Err(Fault::invalid_param(name, message));
    }
    if params.do_remote_decode && answers > 1 {
        return Err(Fault::invalid_param(
            name,
            format!("`{name}` goes with one answer, and `n` is {answers}"),
        ));
    }
    Ok(params)
}

/// Members of OpenAI's and vLLM's APIs that would change the answer and have no effect here yet.
fn refuse_unbuilt(members: &Members) -> Result<(), Fault> {
    let unless_removed = "remove it";
    for name in [
        "logits_processors",
        "prompt_embeds",
        "audio",
        "prediction",
        "web_search_options",
        "repetition_detection",
        "logprob_token_ids",
        "thinking_token_budget",
    ] {
        members.unbuilt(name, NONE, unless_removed)?;
    }
    // Has no effect on tokenizers of the kinds that are read.
    members.boolean("spaces_between_special_tokens")?;
    members.unbuilt("use_beam_search", FALSE, unless_removed)?;
    let text_only: fn(&Value) -> bool = |v| v.as_array().is_some_and(|a| a.iter().all(|m| m == "text"));
    members.unbuilt("modalities", text_only, "this model answers in text: use [\"text\"]")
}

fn streaming(members: &Members) -> Result<Option<Streaming>, Fault> {
    let stream = members.boolean("stream")?.unwrap_or(false);
    let Some(options) = members.object("stream_options")? else {
        return Ok(stream.then(Streaming::default));
    };
    if !stream {
        return Err(Fault::invalid_param("stream_options", "`stream_options` needs `stream` to be true"));
    }
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => Err(wrong(&format!("stream_options.{name}"), "true or false", other)),
    };
    let continuous_usage = flag("continuous_usage_stats")?;
    Ok(Some(Streaming { usage: flag("include_usage")?, continuous_usage }))
}

fn stops(members: &Members) -> Result<Vec<String>, Fault> {
    let name = "stop";
    let stops: Vec<String> = match members.get(name) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => texts
            .iter()
            .enumerate()
            .map(|(i, t)| {
                t.as_str().map(str::to_owned).ok_or_else(|| wrong(&format!("stop[{i}]"), "a string", t))
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong(name, "a string or an array of strings", other)),
    };
    if stops.len() > MAX_STOPS {
        let message = format!("`stop` must hold at most {MAX_STOPS} texts, and it holds {}", stops.len());
        return Err(Fault::invalid_param(name, message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(Fault::invalid_param(name, "`stop` must not hold an empty text"));
    }
    Ok(stops)
}

fn token_ids(members: &Members, name: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, Fault> {
    let ids = members.array(name)?.unwrap_or_default();
    ids.iter().enumerate().map(|(i, id)| token_id(&format!("{name}[{i}]"), id, tokenizer)).collect()
}

fn allowed_tokens(members: &Members, tokenizer: &Tokenizer) -> Result<Option<Arc<TokenMask>>, Fault> {
    let name = "allowed_token_ids";
    let ids = token_ids(members, name, tokenizer)?;
    if members.get(name).is_some() && ids.is_empty() {
        return Err(Fault::invalid_param(name, "`allowed_token_ids` is empty: send at least one token id"));
    }
    Ok((!ids.is_empty()).then(|| Arc::new(TokenMask::of(&ids))))
}

/// The tokens of texts that must not come, as they are at a text's beginning and after a space.
fn bad_words(members: &Members, tokenizer: &Tokenizer) -> Result<Arc<[Vec<u32>]>, Fault> {
    let name = "bad_words";
    let words = members.array(name)?.unwrap_or_default();
    if words.len() > MAX_BAD_WORDS {
        let message =
            format!("`{name}` must hold at most {MAX_BAD_WORDS} texts, and it holds {}", words.len());
        return Err(Fault::invalid_param(name, message));
    }
    let mut runs = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let at = format!("{name}[{i}]");
        let text = word.as_str().ok_or_else(|| wrong(&at, "a string", word))?;
        if text.trim().is_empty() || text.len() > MAX_BAD_WORD_BYTES {
            let message = format!(
                "`{at}` must be a text of 1 to {MAX_BAD_WORD_BYTES} bytes that is not all white space"
            );
            return Err(Fault::invalid_param(&at, message));
        }
        for text in [text.to_owned(), format!(" {}", text.trim_start())] {
            let run = tokenizer.encode(&text, false).map_err(|e| Fault::invalid_param(&at, e.to_string()))?;
            if !run.is_empty() && !runs.contains(&run) {
                runs.push(run);
            }
        }
    }
    Ok(runs.into())
}

/// A token id of this vocabulary.
pub(super) fn token_id(name: &str, value: &Value, tokenizer: &Tokenizer) -> Result<u32, Fault> {
    let last = tokenizer.vocab_size() as i64 - 1;
    whole(value, &(0..=last))
        .map(|id| id as u32)
        .ok_or_else(|| wrong(name, &format!("a token id from 0 to {last}"), value))
}

fn logit_bias(members: &Members, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, Fault> {
    let name = "logit_bias";
    let Some(biases) = members.object(name)? else { return Ok(Vec::new()) };
    if biases.len() > MAX_BIASES {
        let message =
            format!("`logit_bias` must name at most {MAX_BIASES} tokens, and it names {}", biases.len());
        return Err(Fault::invalid_param(name, message));
    }
    let range = Bounds::closed(-100.0, 100.0);
    biases
        .iter()
        .map(|(token, bias)| {
            let size = tokenizer.vocab_size();
            let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < size).ok_or_else(|| {
                let shown: String = token.chars().take(20).collect();
                let message =
                    format!("`logit_bias` must have token ids from 0 to {} as keys, not `{shown}`", size - 1);
                Fault::invalid_param(name, message)
            })?;
            let bias = bias
                .as_f64()
                .filter(|b| (range.low..=range.high).contains(b))
                .ok_or_else(|| wrong(&format!("logit_bias.{id}"), &format!("a number {range}"), bias))?;
            Ok((id, bias as f32))
        })
        .collect()
}
