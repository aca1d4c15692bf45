//! `POST /v1/responses`, from the request to what is stored and sent.

use axum::Json;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;
use strata_hop::{Body, Fault, spool};
use strata_wire::{ErrorKind, Usage, defaults};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::agent::{Agent, End, Progress, Sink};
use super::event::Event;
use super::item::Item;
use super::model::{self, Answer, Failure, Pieces};
use super::object::{Frame, State};
use super::prompt;
use super::request::{Create, json_body};
use crate::app::App;
use crate::identity::{self, Owner};
use crate::mint;
use crate::refusal::{Refusal, not_found};
use crate::relay;
use crate::store::StoreError;
use crate::store::responses::{Context, MAX_CHAIN, MAX_CONTEXT_BYTES, NewResponse, NoContext, Origin};

/// Events that wait for a slow client before the model is held.
const BUFFERED_EVENTS: usize = 64;

/// A response that the model has begun to answer.
struct Begun {
    app: App,
    owner: Owner,
    frame: Frame,
    context: Context,
    headers: HeaderMap,
    explain: bool,
}

pub(super) async fn create(Shared(app): Shared<App>, request: Request) -> Result<Response, Refusal> {
    let explain = relay::explains(&request);
    let (parts, body) = request.into_parts();
    // Who asks comes before what is asked: a stranger's body is not even read.
    let owner = identity::owner(&app, &parts.headers, explain).await?;
    let body = spool::read(body, app.options.max_body_bytes).await?;
    let create = Create::parse(json_body(&body)?, &app.tools)?;
    drop(body);
    let context = app.store.context(&owner, origin(&create)).await?.map_err(no_context)?;
    prompt::check(context.items.iter().chain(&create.input))
        .map_err(|error| Fault::invalid_param("input", error.to_string()))?;
    let headers = relay::headers_for_upstream(&app, &parts.headers);
    let frame = Frame { id: mint::id("resp"), created_at: mint::now(), create };
    let begun = Begun { app, owner, frame, context, headers, explain };
    let chat = begun.agent().opening();
    let (pieces, passed) = match model::ask(&begun.app, &begun.headers, explain, &chat).await? {
        Answer::Stream(pieces, headers) => (pieces, headers),
        Answer::Refused(response) => return Err(response.into()),
    };
    drop(chat);
    let mut response =
        if begun.frame.create.stream { begun.stream(pieces) } else { begun.whole(pieces).await? };
    for (name, value) in &passed {
        if name != header::CONTENT_TYPE && name != header::CACHE_CONTROL {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

fn origin(create: &Create) -> Origin {
    match (&create.previous, &create.conversation) {
        (Some(id), _) => Origin::Response(id.clone()),
        (None, Some(id)) => Origin::Conversation(id.clone()),
        (None, None) => Origin::Nothing,
    }
}

fn no_context(reason: NoContext) -> Fault {
    match reason {
        NoContext::Unknown(Origin::Response(id)) => {
            let mut fault =
                Fault::new(ErrorKind::NotFound, format!("Previous response with id '{id}' not found."))
                    .param("previous_response_id");
            fault.body.error.code = Some("previous_response_not_found".to_owned());
            fault
        }
        NoContext::Unknown(Origin::Conversation(id)) => not_found("conversation", &id).param("conversation"),
        NoContext::Unknown(Origin::Nothing) | NoContext::Broken(Origin::Nothing) => {
            Fault::new(ErrorKind::Internal, "the context is lost")
        }
        NoContext::Broken(Origin::Response(id)) => Fault::invalid_param(
            "previous_response_id",
            format!("an earlier response of this chain, '{id}', was deleted; start a new chain"),
        ),
        NoContext::Broken(Origin::Conversation(id)) => Fault::invalid_param(
            "previous_response_id",
            format!("this chain starts in the conversation '{id}', which was deleted; start a new chain"),
        ),
        NoContext::TooLong => Fault::invalid_param(
            "previous_response_id",
            format!("this chain is {MAX_CHAIN} responses long, which is the limit; start a new chain"),
        ),
        NoContext::TooLarge => Fault::invalid(format!(
            "what this response continues is larger than {} MiB; start anew",
            MAX_CONTEXT_BYTES / (1024 * 1024)
        )),
    }
}

impl Begun {
    fn agent(&self) -> Agent<'_> {
        Agent {
            app: &self.app,
            create: &self.frame.create,
            context: &self.context.items,
            headers: &self.headers,
            explain: self.explain,
        }
    }

    /// Runs the loop within the limit on a response's life.
    async fn drive(&self, pieces: Pieces, progress: &mut Progress, sink: &mut Sink) -> End {
        let run = self.agent();
        match tokio::time::timeout(defaults::STREAM_TIMEOUT, run.run(pieces, progress, sink)).await {
            Ok(end) => end,
            Err(_) => End::Failed(Failure::new(
                ErrorKind::Timeout,
                format!("the response took longer than {} min", defaults::STREAM_TIMEOUT.as_secs() / 60),
            )),
        }
    }

    /// Answers when all is done and stored. When the client leaves first this is dropped, and the
    /// model's answer with it.
    async fn whole(self, pieces: Pieces) -> Result<Response, Refusal> {
        let mut progress = Progress::default();
        let end = self.drive(pieces, &mut progress, &mut Sink::new(None)).await;
        let (output, usage) = progress.settle();
        let state = match &end {
            End::Completed => State::Completed(mint::now()),
            End::Incomplete(why) => State::Incomplete(why),
            // Nothing of this response has been seen: the caller's client can retry by the status.
            End::Failed(_) | End::Cancelled => {
                return Err(match end {
                    End::Failed(failure) => failure.into(),
                    _ => Failure::new(ErrorKind::Internal, "the response was cancelled").into(),
                });
            }
        };
        let object = self.frame.object(&state, &output, usage);
        self.save(&state, output, usage).await?;
        Ok(Json(object).into_response())
    }

    /// Answers with events as they come.
    fn stream(self, pieces: Pieces) -> Response {
        let (to, from) = mpsc::channel(BUFFERED_EVENTS);
        tokio::spawn(self.send(pieces, to));
        let body = Body::from_stream(ReceiverStream::new(from).map(Ok::<_, std::convert::Infallible>));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    async fn send(self, pieces: Pieces, to: mpsc::Sender<bytes::Bytes>) {
        let mut sink = Sink::new(Some(to.clone()));
        let mut progress = Progress::default();
        let started = self.frame.object(&State::InProgress, &[], None);
        let opening = [
            Event::response("response.created", &started),
            Event::response("response.in_progress", &started),
        ];
        let end = if sink.emit(opening).await {
            // Dropping the loop drops its connection to the next layer, which stops the model.
            tokio::select! {
                end = self.drive(pieces, &mut progress, &mut sink) => end,
                () = to.closed() => End::Cancelled,
            }
        } else {
            End::Cancelled
        };
        let (output, usage) = progress.settle();
        let (kind, state) = match &end {
            End::Completed => ("response.completed", State::Completed(mint::now())),
            End::Incomplete(why) => ("response.incomplete", State::Incomplete(why)),
            End::Failed(failure) => {
                tracing::warn!(response = %self.frame.id, error = %failure.message, "a response failed");
                ("response.failed", State::Failed(failure))
            }
            End::Cancelled => {
                tracing::debug!(response = %self.frame.id, "the client left");
                ("response.cancelled", State::Cancelled)
            }
        };
        let object = self.frame.object(&state, &output, usage);
        let last = match self.save(&state, output.clone(), usage).await {
            Ok(()) => Event::response(kind, &object),
            Err(error) => {
                tracing::error!(%error, response = %self.frame.id, "could not store a response");
                let failure = Failure::new(ErrorKind::Internal, format!("{error}; nothing of it was saved"));
                let object = self.frame.object(&State::Failed(&failure), &output, usage);
                Event::response("response.failed", &object)
            }
        };
        if !matches!(end, End::Cancelled) {
            sink.emit([last]).await;
        }
    }

    /// Stores the response, unless it is not to be. Returns when it is on disk.
    async fn save(
        &self,
        state: &State<'_>,
        output: Vec<Item>,
        usage: Option<Usage>,
    ) -> Result<(), StoreError> {
        let create = &self.frame.create;
        if !create.store {
            return Ok(());
        }
        let body: Value = self.frame.object(state, &[], usage);
        let new = NewResponse {
            id: self.frame.id.clone(),
            owner: self.owner.clone(),
            created_at: self.frame.created_at,
            origin: origin(create),
            depth: self.context.depth,
            before: self.context.before,
            extends: matches!(state, State::Completed(_) | State::Incomplete(_)),
            body,
            input: create.input.clone(),
            output,
        };
        self.app.store.insert_response(new).await
    }
}
