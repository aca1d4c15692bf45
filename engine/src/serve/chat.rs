//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use jiff::Zoned;
use serde_json::{Map, Value};
use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::chat::{
    AssistantMessage, ChatResponse, Choice, ChoiceLogprobs, Content, FinishReason, FunctionCall, Message,
    TokenLogprob, ToolCall,
};

use super::answer::{self, Meter};
use super::chat_stream::ChatStream;
use super::members::Members;
use super::next_turn::NextTurn;
use super::options::TokenOptions;
use super::speech::{Growing, Said, Speech};
use super::{echo, messages, options, structured, submit};
use crate::runtime::{Engine, Event, Generation, Piece, StopCause};
use crate::template::{Prompt, TemplateError};

/// Answers a conversation.
pub(super) async fn create(
    State(engine): State<Arc<Engine>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let members = Members::read(body).await?;
    let adapter = submit::check_model(&members, &engine, true)?;
    let messages = messages::read(&members)?;
    let tools = messages::tools(&members)?;
    let mut options =
        options::read(&members, engine.tokenizer(), engine.max_model_len(), logprobs(&members)?)?;
    members.unbuilt("best_of", |v| v.as_i64().is_none_or(|b| b <= 1), "remove it, or use `n`")?;
    members.unbuilt("chat_template", |_| false, "the model's own template is used: remove it")?;
    members.unbuilt("documents", |v| v.as_array().is_some_and(Vec::is_empty), "write them into a message")?;
    let add_special = members.boolean("add_special_tokens")?.unwrap_or(false);
    let form = structured::read(&members, engine.tokenizer())?;
    let asked = output_limit(&members)?;
    let include_reasoning = members.boolean("include_reasoning")?.unwrap_or(true);
    let text = render(&engine, &members, &messages, tools.as_ref().map(|tools| tools.list.as_slice()))?;
    let speech = Speech::of(&engine, tools.as_ref(), &text, include_reasoning);
    options.rules.marks = speech.marks(&engine).into();
    let prompt =
        submit::encode(&engine, text.clone(), add_special, options.tokens.truncate, "messages").await?;
    if prompt.is_empty() {
        return Err(Fault::invalid_param(
            "messages",
            "the chat template makes an empty prompt of these messages",
        ));
    }
    options.rules.max_tokens = submit::output_limit(&engine, prompt.len(), asked, None, "messages")?;
    options.structure = speech.structure(&engine, tools.as_ref(), form).await?;
    let role = role(&members, &messages)?;
    let echoed = if members.boolean("echo")?.unwrap_or(false) {
        // As many as of the answer, in the one place where a prompt's are told.
        if options.stream.is_none() {
            options.sampling.prompt_logprobs = options.sampling.prompt_logprobs.or(options.sampling.logprobs);
        }
        echo::last_message(&messages, &role)
    } else {
        String::new()
    };
    let claims = submit::claims(&engine, &members, &options, &text, &prompt);
    let id = submit::request_id(&headers)?;
    options.span = submit::span(&engine, &headers);
    submit::fetch(&engine, &options).await?;
    let keeps = options.transfer.do_remote_decode.then(|| id.clone());
    let head = Head {
        id: format!("chatcmpl-{id}"),
        created: submit::now(),
        model: submit::answers_as(&engine, adapter.as_deref()),
        role,
        echoed,
        n: options.n,
        logprobs: options.sampling.logprobs.is_some(),
        speech,
        tokens: options.tokens,
        prompt: if options.tokens.ids { Some(prompt.clone()) } else { None },
    };
    let meter = Meter { prompt: prompt.len(), ..Meter::default() };
    let streaming = options.stream;
    let next = NextTurn::of(&engine, members, messages, tools, &options, adapter.is_some());
    let mut generation = submit::submit(&engine, id, vec![prompt], claims, options, adapter)?;
    let begun = submit::begin(&mut generation).await?;
    if let Some(how) = streaming {
        return Ok(answer::stream(
            ChatStream::new(head, how, meter, engine, generation, begun, next).events(),
        ));
    }
    let mut whole = collect(head, meter, &engine, generation, begun, next).await?;
    whole.kv_transfer_params = keeps.and_then(|id| submit::kept(&engine, &id));
    Ok(Json(whole).into_response())
}

/// What every chunk, and the whole answer, say alike.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    /// Of the answers.
    pub(super) role: String,
    /// What stands before each answer.
    pub(super) echoed: String,
    pub(super) n: usize,
    pub(super) logprobs: bool,
    pub(super) speech: Speech,
    pub(super) tokens: TokenOptions,
    /// The prompt's tokens, when they are to be told.
    pub(super) prompt: Option<Vec<u32>>,
}

fn logprobs(members: &Members) -> Result<Option<usize>, Fault> {
    let wanted = members.boolean("logprobs")?.unwrap_or(false);
    match members.whole("top_logprobs", 0..=20)? {
        Some(top) if top > 0 && !wanted => {
            Err(Fault::invalid_param("top_logprobs", "`top_logprobs` needs `logprobs` to be true"))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
    }
}

/// Whose the answer is: the assistant's, or where the prompt does not end with a beginning of its answer,
/// the last message's, which goes on.
fn role(members: &Members, messages: &[Message]) -> Result<String, Fault> {
    let continues = members.boolean("continue_final_message")?.unwrap_or(false);
    let begins = members.boolean("add_generation_prompt")?.unwrap_or(!continues);
    let last = messages.last().filter(|_| !begins);
    Ok(last.map_or_else(|| "assistant".to_owned(), |message| message.role.clone()))
}

/// The limit that the request names; the newer name counts where both stand.
fn output_limit(members: &Members) -> Result<Option<usize>, Fault> {
    for name in ["max_completion_tokens", "max_tokens"] {
        if let Some(limit) = members.whole(name, 1..=i64::MAX)? {
            return Ok(Some(limit as usize));
        }
    }
    Ok(None)
}

/// How much the model is to think, which is for its chat template to say.
fn reasoning_effort(members: &Members) -> Result<Option<&str>, Fault> {
    const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    let name = "reasoning_effort";
    match members.text(name)? {
        Some(other) if !EFFORTS.contains(&other) => {
            let message = format!("`{name}` must be one of {}", EFFORTS.join(", "));
            Err(Fault::invalid_param(name, message))
        }
        effort => Ok(effort),
    }
}

/// The prompt's text.
pub(super) fn render(
    engine: &Engine,
    members: &Members,
    messages: &[Message],
    tools: Option<&[Value]>,
) -> Result<String, Fault> {
    let template = engine.template().ok_or_else(|| {
        Fault::invalid_param("messages", "this model has no chat template; use /v1/completions")
    })?;
    let mut extra: Map<String, Value> = members.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    if let Some(effort) = reasoning_effort(members)? {
        extra.entry("reasoning_effort").or_insert_with(|| effort.into());
    }
    let continues = members.boolean("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = members.boolean("add_generation_prompt")?;
    if continues && add_generation_prompt == Some(true) {
        let message =
            "`continue_final_message` and `add_generation_prompt` exclude each other; send one of them";
        return Err(Fault::invalid_param("continue_final_message", message));
    }
    let add_generation_prompt = add_generation_prompt.unwrap_or(true) && !continues;
    let prompt = Prompt { messages, tools, add_generation_prompt, extra };
    let text = template.render(&prompt, &Zoned::now()).map_err(|error| match error {
        TemplateError::Malformed(_) => Fault::new(ErrorKind::Internal, error.to_string()),
        _ => Fault::invalid_param("messages", error.to_string()),
    })?;
    if continues { cut_behind_last(text, messages) } else { Ok(text) }
}

/// The prompt up to the end of the last message's text, without what closes the message.
fn cut_behind_last(mut text: String, messages: &[Message]) -> Result<String, Fault> {
    let last = match messages.last().and_then(|message| message.content.as_ref()) {
        Some(Content::Text(last)) if !last.trim().is_empty() => last,
        _ => {
            let message = "`continue_final_message` needs a last message whose content is a text";
            return Err(Fault::invalid_param("continue_final_message", message));
        }
    };
    // Templates may trim what they are given.
    let end = [last.as_str(), last.trim()].iter().find_map(|last| Some(text.rfind(last)? + last.len()));
    let end = end.ok_or_else(|| {
        let message = "the chat template changes the last message, so that it cannot be continued";
        Fault::invalid_param("continue_final_message", message)
    })?;
    text.truncate(end);
    Ok(text)
}

/// A new call's id.
pub(super) fn call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}

async fn collect(
    head: Head,
    mut meter: Meter,
    engine: &Engine,
    mut generation: Generation,
    begun: Vec<Event>,
    mut next: Option<NextTurn>,
) -> Result<ChatResponse, Fault> {
    struct Whole {
        growing: Growing,
        reasoning: String,
        text: String,
        calls: Vec<ToolCall>,
        logprobs: Vec<TokenLogprob>,
        finish: Option<FinishReason>,
        stop: Option<StopCause>,
        tokens: Vec<u32>,
    }
    let mut scored = Vec::new();
    let mut answers: Vec<Whole> = (0..head.n)
        .map(|_| Whole {
            growing: Growing::new(head.speech),
            reasoning: String::new(),
            text: head.echoed.clone(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            finish: None,
            stop: None,
            tokens: Vec::new(),
        })
        .collect();
    let mut take = |event: Event| -> Result<(), Fault> {
        match event {
            Event::Failed(failure) => return Err(submit::failed(&failure)),
            Event::Admitted { cached_tokens, .. } => meter.cached += cached_tokens,
            Event::Scored { tokens, .. } => scored.extend(tokens),
            Event::Piece(Piece { choice, text, token, finish, stop }) => {
                let Some(answer) = answers.get_mut(choice) else { return Ok(()) };
                if let Some(token) = &token {
                    meter.completion += 1;
                    answer.tokens.push(token.id);
                    let by_id = head.tokens.by_id;
                    answer.logprobs.extend(answer::token_logprob(token, engine.tokenizer(), by_id));
                }
                for output in answer.growing.push(&text, finish.is_some()) {
                    if let Some(next) = &mut next {
                        next.hear(&output);
                    }
                    match output {
                        Said::Reasoning(text) => answer.reasoning.push_str(&text),
                        Said::Text(text) => answer.text.push_str(&text),
                        Said::Call(name) => {
                            let function = FunctionCall { name, arguments: String::new() };
                            answer.calls.push(ToolCall { id: call_id(), kind: "function".into(), function });
                        }
                        Said::Arguments(more) => {
                            if let Some(call) = answer.calls.last_mut() {
                                call.function.arguments.push_str(&more);
                            }
                        }
                    }
                }
                answer.finish = finish.map(|reason| answer.growing.finish(reason));
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
    if let Some(next) = next {
        next.tell();
    }
    let choices = answers.into_iter().enumerate().map(|(index, whole)| {
        let calls = (!whole.calls.is_empty()).then_some(whole.calls);
        let reasoning = (!whole.reasoning.is_empty()).then_some(whole.reasoning);
        let silent = whole.text.is_empty() && (calls.is_some() || reasoning.is_some());
        let content = (!silent).then_some(whole.text);
        Choice {
            index: index as u32,
            message: AssistantMessage {
                role: head.role.clone(),
                content,
                reasoning: reasoning.clone(),
                reasoning_content: reasoning,
                tool_calls: calls,
            },
            logprobs: head.logprobs.then_some(ChoiceLogprobs { content: Some(whole.logprobs) }),
            finish_reason: whole.finish,
            stop_reason: answer::stop_reason(whole.stop),
            token_ids: head.tokens.ids.then_some(whole.tokens),
        }
    });
    let prompt_logprobs = (!scored.is_empty()).then(|| answer::prompt_logprobs(&scored, engine.tokenizer()));
    Ok(ChatResponse {
        choices: choices.collect(),
        id: head.id,
        object: "chat.completion".into(),
        created: head.created,
        model: head.model,
        usage: Some(meter.usage()),
        kv_transfer_params: None,
        prompt_logprobs,
        prompt_token_ids: head.prompt,
    })
}
