//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde_json::{Map, Value};
use strata_hop::Fault;
use strata_wire::chat::FinishReason;
use strata_wire::completion::{CompletionChoice, CompletionLogprobs, CompletionResponse};

use super::answer::{self, Meter};
use super::completion_stream::CompletionStream;
use super::members::{Members, wrong};
use super::options::{Options, TokenOptions};
use super::submit::Cut;
use super::{echo, options, structured, submit};
use crate::runtime::{Engine, Event, Generation, Piece, PieceToken, StopCause, Structure};
use crate::sampling::ScoredToken;
use crate::tokenizer::Tokenizer;

/// Tokens generated when the request names no limit: OpenAI's own default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Continues texts.
pub(super) async fn create(
    State(engine): State<Arc<Engine>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let members = Members::read(body).await?;
    let adapter = submit::check_model(&members, &engine, true)?;
    let logprobs = members.whole("logprobs", 0..=5)?.map(|top| top as usize);
    let mut options = options::read(&members, engine.tokenizer(), engine.max_model_len(), logprobs)?;
    members.unbuilt("suffix", |v| v == "", "remove it")?;
    let echo = members.boolean("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        options.sampling.prompt_logprobs = options.sampling.prompt_logprobs.max(logprobs);
    }
    let keep = options.n;
    options.n = best_of(&members, &mut options)?;
    // Nothing is an answer where the prompt is wanted back.
    let asked = members.whole("max_tokens", i64::from(!echo)..=i64::MAX)?.map(|limit| limit as usize);
    let prompts = prompts(&engine, &members, &options).await?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    options.rules.max_tokens = submit::output_limit(
        &engine,
        longest,
        asked.map(|limit| limit.max(1)),
        Some(DEFAULT_MAX_TOKENS),
        "prompt",
    )?;
    if let Some(form) = structured::read(&members, engine.tokenizer())? {
        let grammar = structured::compile(&engine, form).await?;
        options.structure = Some(Structure { grammar, thinking: None });
    }
    let claims = match (members.get("prompt"), prompts.first()) {
        (Some(Value::String(text)), Some(tokens)) => {
            submit::claims(&engine, &members, &options, text, tokens)
        }
        _ => Vec::new(),
    };
    let id = submit::request_id(&headers)?;
    options.span = submit::span(&engine, &headers);
    submit::fetch(&engine, &options).await?;
    let keeps = options.transfer.do_remote_decode.then(|| id.clone());
    let echoed = if echo {
        prompts.iter().map(|p| engine.tokenizer().decode(p, !options.rules.keep_special)).collect()
    } else {
        vec![String::new(); prompts.len()]
    };
    let head = Head {
        id: format!("cmpl-{id}"),
        created: submit::now(),
        model: submit::answers_as(&engine, adapter.as_deref()),
        n: options.n,
        echoed,
        echoes: echo,
        prompt_only: asked == Some(0),
        keep,
        logprobs,
        tells_prompt_logprobs: members.get("prompt_logprobs").is_some(),
        tokens: options.tokens,
        prompts: if options.tokens.ids || echo { prompts.clone() } else { vec![Vec::new(); prompts.len()] },
    };
    let meter = Meter { prompt: prompts.iter().map(Vec::len).sum(), ..Meter::default() };
    let streaming = options.stream;
    let mut generation = submit::submit(&engine, id, prompts, claims, options, adapter)?;
    let begun = submit::begin(&mut generation).await?;
    if let Some(how) = streaming {
        return Ok(answer::stream(
            CompletionStream::new(head, how, meter, engine, generation, begun).events(),
        ));
    }
    let mut whole = collect(head, meter, &engine, generation, begun).await?;
    whole.kv_transfer_params = keeps.and_then(|id| submit::kept(&engine, &id));
    Ok(Json(whole).into_response())
}

/// What every chunk, and the whole answer, say alike.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) n: usize,
    /// What stands before each prompt's answers.
    pub(super) echoed: Vec<String>,
    /// Whether that is the prompt.
    pub(super) echoes: bool,
    /// Whether nothing stands behind it.
    pub(super) prompt_only: bool,
    /// Answers to each prompt that are returned, the likeliest of `n`.
    pub(super) keep: usize,
    /// Likeliest tokens to tell at each place.
    pub(super) logprobs: Option<usize>,
    pub(super) tells_prompt_logprobs: bool,
    pub(super) tokens: TokenOptions,
    /// The prompts' tokens, when they are to be told.
    pub(super) prompts: Vec<Vec<u32>>,
}

impl Head {
    /// Whether answers begin with the log probabilities of their prompt.
    pub(super) fn echoes_logprobs(&self) -> bool {
        self.echoes && self.logprobs.is_some()
    }

    pub(super) fn response(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<strata_wire::Usage>,
    ) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion".into(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            kv_transfer_params: None,
        }
    }
}

/// A text, texts, token ids, or lists of token ids.
async fn prompts(engine: &Arc<Engine>, members: &Members, options: &Options) -> Result<Vec<Vec<u32>>, Fault> {
    let (n, cut) = (options.n, options.tokens.truncate);
    let wanted = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
    let Some(prompt) = members.get("prompt") else {
        return Err(Fault::invalid_param("prompt", format!("`prompt` is missing: send {wanted}")));
    };
    let add_special = members.boolean("add_special_tokens")?.unwrap_or(true);
    // Before any of them is tokenised: that is the work which is refused.
    if let Value::Array(items) = prompt
        && items.iter().any(|item| !item.is_number())
    {
        engine.admits(items.len() * n).map_err(submit::refused)?;
    }
    let prompts = match prompt {
        Value::String(text) => vec![text_prompt(engine, text, add_special, cut).await?],
        Value::Array(items) => match items.first() {
            None => {
                return Err(Fault::invalid_param("prompt", "`prompt` is empty: send at least one prompt"));
            }
            Some(Value::String(_)) => {
                let mut prompts = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let text =
                        item.as_str().ok_or_else(|| wrong(&format!("prompt[{i}]"), "a string", item))?;
                    prompts.push(text_prompt(engine, text, add_special, cut).await?);
                }
                prompts
            }
            Some(Value::Array(_)) => items
                .iter()
                .enumerate()
                .map(|(i, item)| token_prompt(engine, &format!("prompt[{i}]"), item))
                .collect::<Result<_, _>>()?,
            Some(_) => vec![token_prompt(engine, "prompt", prompt)?],
        },
        other => return Err(wrong("prompt", wanted, other)),
    };
    let Some(cut) = cut else { return Ok(prompts) };
    Ok(prompts.into_iter().map(|prompt| cut.apply(prompt)).collect())
}

/// How many answers to each prompt are generated, of which `n` are returned.
fn best_of(members: &Members, options: &mut Options) -> Result<usize, Fault> {
    let name = "best_of";
    let Some(best_of) = members.whole(name, 1..=options::MAX_N)? else { return Ok(options.n) };
    let best_of = best_of as usize;
    if best_of < options.n {
        let message = format!("`{name}` is {best_of} and must be at least `n`, which is {}", options.n);
        return Err(Fault::invalid_param(name, message));
    }
    if best_of > options.n {
        if options.stream.is_some() {
            let message = format!("`{name}` above `n` cannot be streamed: send it without `stream`");
            return Err(Fault::invalid_param(name, message));
        }
        // They are compared by it.
        options.sampling.logprobs = options.sampling.logprobs.or(Some(0));
    }
    Ok(best_of)
}

async fn text_prompt(
    engine: &Arc<Engine>,
    text: &str,
    add_special: bool,
    cut: Option<Cut>,
) -> Result<Vec<u32>, Fault> {
    let tokens = submit::encode(engine, text.to_owned(), add_special, cut, "prompt").await?;
    if !tokens.is_empty() {
        return Ok(tokens);
    }
    // An empty text still has a continuation where the model knows a beginning.
    match engine.tokenizer().special().bos {
        Some(bos) => Ok(vec![bos]),
        None => Err(Fault::invalid_param("prompt", "`prompt` is an empty text: send at least one character")),
    }
}

fn token_prompt(engine: &Engine, name: &str, value: &Value) -> Result<Vec<u32>, Fault> {
    let Some(ids) = value.as_array() else { return Err(wrong(name, "an array of token ids", value)) };
    if ids.is_empty() {
        return Err(Fault::invalid_param(name, format!("`{name}` is empty: send at least one token id")));
    }
    ids.iter()
        .enumerate()
        .map(|(i, id)| options::token_id(&format!("{name}[{i}]"), id, engine.tokenizer()))
        .collect()
}

/// Adds a token to an answer's log probabilities. `offset` is where its text begins, in characters.
pub(super) fn note_logprob(
    list: &mut CompletionLogprobs,
    token: &PieceToken,
    tokenizer: &Tokenizer,
    offset: usize,
    by_id: bool,
) {
    let Some(entry) = answer::token_logprob(token, tokenizer, by_id) else { return };
    let mut top: Map<String, Value> =
        entry.top_logprobs.into_iter().map(|t| (t.token, Value::from(t.logprob))).collect();
    // The chosen token is always among them, as OpenAI has it.
    top.entry(entry.token.clone()).or_insert_with(|| Value::from(entry.logprob));
    list.tokens.push(entry.token);
    list.token_logprobs.push(Some(entry.logprob));
    list.top_logprobs.get_or_insert_default().push(top);
    list.text_offset.push(offset);
}

async fn collect(
    head: Head,
    mut meter: Meter,
    engine: &Engine,
    mut generation: Generation,
    begun: Vec<Event>,
) -> Result<CompletionResponse, Fault> {
    struct Whole {
        text: String,
        /// Characters of the tokens so far, those held back included.
        chars: usize,
        logprobs: CompletionLogprobs,
        finish: Option<FinishReason>,
        stop: Option<StopCause>,
        tokens: Vec<u32>,
        /// The sum of the log probabilities.
        likelihood: f64,
    }
    let mut scored: Vec<Vec<ScoredToken>> = vec![Vec::new(); head.echoed.len()];
    let mut answers: Vec<Whole> = (0..head.n * head.echoed.len())
        .map(|i| Whole {
            text: head.echoed[i / head.n].clone(),
            chars: 0,
            logprobs: CompletionLogprobs::default(),
            finish: None,
            stop: None,
            tokens: Vec::new(),
            likelihood: 0.0,
        })
        .collect();
    let mut take = |event: Event| -> Result<(), Fault> {
        match event {
            Event::Failed(failure) => return Err(submit::failed(&failure)),
            Event::Admitted { cached_tokens, .. } => meter.cached += cached_tokens,
            Event::Scored { prompt, tokens } => {
                if let Some(scored) = scored.get_mut(prompt) {
                    scored.extend(tokens);
                }
            }
            Event::Piece(piece) => {
                let Piece { choice, text, token, finish, stop } = echo::told(&head, piece);
                let Some(answer) = answers.get_mut(choice) else { return Ok(()) };
                if let Some(token) = &token {
                    meter.completion += 1;
                    let by_id = head.tokens.by_id;
                    note_logprob(&mut answer.logprobs, token, engine.tokenizer(), answer.chars, by_id);
                    answer.likelihood += token.logprobs.as_ref().map_or(0.0, |l| f64::from(l.chosen));
                    answer.tokens.push(token.id);
                    answer.chars += engine.tokenizer().text(token.id).chars().count();
                }
                answer.text.push_str(&text);
                answer.finish = finish;
                answer.stop = stop;
            }
        }
        Ok(())
    };
    for event in begun {
        take(event)?;
    }
    while let Some(event) = generation.next().await {
        take(event)?;
    }
    let mut choices = Vec::new();
    let mut answers = answers.into_iter();
    for (prompt, scored) in scored.iter().enumerate() {
        let mut group: Vec<Whole> = answers.by_ref().take(head.n).collect();
        if head.keep < head.n {
            let mean = |whole: &Whole| whole.likelihood / whole.tokens.len().max(1) as f64;
            group.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            group.truncate(head.keep);
        }
        for whole in group {
            let mut logprobs = whole.logprobs;
            if head.echoes_logprobs() {
                logprobs = echo::logprobs(&head, prompt, scored, engine.tokenizer(), logprobs);
            }
            choices.push(CompletionChoice {
                index: choices.len() as u32,
                text: whole.text,
                logprobs: head.logprobs.map(|_| logprobs),
                finish_reason: whole.finish,
                stop_reason: answer::stop_reason(whole.stop),
                token_ids: head.tokens.ids.then_some(whole.tokens),
                prompt_logprobs: head
                    .tells_prompt_logprobs
                    .then(|| answer::prompt_logprobs(scored, engine.tokenizer())),
                prompt_token_ids: head.tokens.ids.then(|| head.prompts[prompt].clone()),
            });
        }
    }
    Ok(head.response(choices, Some(meter.usage())))
}
