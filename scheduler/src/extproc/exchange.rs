//! What is said on one stream, in which order: parts of a request come in, answers go out, and in between
//! a replica is asked for, once. Pure.
//!
//! How the request's body comes decides when its headers are answered, and only with that answer can a
//! replica be named:
//!
//! | body | named with the answer to |
//! |---|---|
//! | `BUFFERED`, `BUFFERED_PARTIAL` | the body: the proxy holds the headers until then |
//! | `FULL_DUPLEX_STREAMED`, or `STREAMED` without waiting for the headers' answer | the headers, when the whole body is here |
//! | `NONE`, or `STREAMED` after the headers | the headers, before the body is seen |

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use strata_hop::Fault;
use strata_wire::{ErrorKind, defaults, headers};

use super::answer::{Chosen, Reply, change, piece, say, unchanged};
use super::cut::{exchanged, is_new, pieces};
use super::head::{Head, value};
use super::proto::{
    Answer, HeaderMutation, HttpBody, HttpHeaders, Metadata, Mutation, Part, ProcessingRequest,
    ProtocolConfiguration, TrailersResponse,
};

/// Messages that may come while a replica is looked for: a proxy that keeps to the protocol has sent all
/// of the request but its trailers by then.
const MAX_LATE: usize = 16;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Send this.
    Say(super::proto::ProcessingResponse),
    /// Find a replica, and tell it to [`Exchange::resolved`].
    Place(Box<Asked>),
    /// The response has begun, with this status.
    Begun(u16),
    /// The response has ended.
    Finished,
    /// Close the stream; with why, where the proxy did not keep to the protocol.
    End(Result<(), &'static str>),
}

/// A request for which a replica is wanted.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) head: Head,
    pub(crate) body: Body,
}

/// What is here of a request's body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// Nothing, and it cannot be changed.
    Unseen,
    /// All of it.
    Whole(Bytes),
    /// What fits the proxy's buffer: perhaps all, perhaps its beginning.
    Perhaps(Bytes),
}

/// How a request's body comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    None,
    /// In pieces, after the headers are answered.
    Streamed,
    /// In pieces, each of which wants an answer, at once.
    StreamedEarly,
    Buffered,
    Partial,
    Duplex,
    /// This number is none of them.
    Unknown(i32),
}

/// Number of the mode `FULL_DUPLEX_STREAMED`.
const DUPLEX: i32 = 4;

impl Mode {
    /// A proxy that does not tell streams in full duplex: that is the one mode which the endpoint-picker
    /// protocol asks for.
    fn of(config: Option<&ProtocolConfiguration>) -> Self {
        match config.map(|config| (config.request_body_mode, config)) {
            None | Some((DUPLEX, _)) => Self::Duplex,
            Some((0, _)) => Self::None,
            Some((1, config)) if config.send_body_without_waiting_for_header_response => Self::StreamedEarly,
            Some((1, _)) => Self::Streamed,
            Some((2, _)) => Self::Buffered,
            Some((3, _)) => Self::Partial,
            Some((other, _)) => Self::Unknown(other),
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Exchange {
    mode: Mode,
    /// Whether the response's body comes in full duplex.
    response_duplex: bool,
    state: State,
    /// What came while a replica was looked for.
    late: VecDeque<Part>,
}

#[derive(Debug)]
enum State {
    /// Nothing has come.
    Start,
    /// The body comes.
    Reading(Box<Reading>),
    /// A replica is looked for.
    Placing(Pending),
    /// The proxy knows where to send the request.
    Passed,
    Ended,
}

#[derive(Debug)]
struct Reading {
    head: Head,
    body: BytesMut,
    /// Lengths of the pieces in which it came.
    pieces: Vec<usize>,
}

/// What waits for an answer while a replica is looked for.
#[derive(Debug)]
enum Pending {
    Headers,
    /// The one message with the body.
    Body(Bytes),
    /// Headers and each of the body's pieces.
    Pieces {
        sent: Bytes,
        pieces: Vec<usize>,
        trailers: bool,
    },
    /// Headers, and a body that comes back in pieces of any size.
    Duplex {
        trailers: bool,
    },
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self { mode: Mode::Duplex, response_duplex: true, state: State::Start, late: VecDeque::new() }
    }

    /// Whether parts of the request are still to come before a replica can be looked for.
    pub(crate) fn is_reading(&self) -> bool {
        matches!(self.state, State::Start | State::Reading(_))
    }

    /// A message has come.
    pub(crate) fn on(&mut self, message: ProcessingRequest) -> Vec<Action> {
        if message.observability_mode {
            return self.end(Ok(()));
        }
        if let (State::Start, Some(config)) = (&self.state, &message.protocol_config) {
            self.mode = Mode::of(Some(config));
            self.response_duplex = config.response_body_mode == DUPLEX;
        }
        match message.part {
            Some(part) => self.part(part, message.metadata_context.as_ref()),
            None => self.end(Err("a message has none of the parts that are known here")),
        }
    }

    /// A replica has been found, or the request gets this answer.
    pub(crate) fn resolved(&mut self, outcome: Result<Chosen, Reply>) -> Vec<Action> {
        let pending = match std::mem::replace(&mut self.state, State::Passed) {
            State::Placing(pending) => pending,
            other => {
                self.state = other;
                return Vec::new();
            }
        };
        let chosen = match outcome {
            Ok(chosen) => chosen,
            Err(reply) => return self.reply(&reply),
        };
        let mut actions = self.passed(&chosen, pending);
        while let Some(part) = self.late.pop_front() {
            actions.extend(self.part(part, None));
        }
        actions
    }

    /// The request is refused, whatever has come of it. Nothing happens once the proxy knows where to
    /// send it.
    pub(crate) fn refuse(&mut self, fault: &Fault) -> Vec<Action> {
        match self.state {
            State::Passed | State::Ended => Vec::new(),
            _ => self.reply(&Reply::from(fault)),
        }
    }

    fn reply(&mut self, reply: &Reply) -> Vec<Action> {
        let mut actions = vec![Action::Say(reply.message())];
        actions.extend(self.end(Ok(())));
        actions
    }

    fn end(&mut self, how: Result<(), &'static str>) -> Vec<Action> {
        self.late.clear();
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => Vec::new(),
            _ => vec![Action::End(how)],
        }
    }

    fn part(&mut self, part: Part, metadata: Option<&Metadata>) -> Vec<Action> {
        match &self.state {
            State::Ended => return Vec::new(),
            State::Placing(_) if self.late.len() >= MAX_LATE => {
                return self.end(Err("the proxy goes on sending before its last message is answered"));
            }
            State::Placing(_) => {
                self.late.push_back(part);
                return Vec::new();
            }
            State::Start | State::Reading(_) | State::Passed => {}
        }
        match part {
            Part::RequestHeaders(sent) => self.request_headers(&sent, metadata),
            Part::RequestBody(body) => self.request_body(body),
            Part::RequestTrailers(_) => self.request_trailers(),
            Part::ResponseHeaders(sent) => self.response_headers(&sent),
            Part::ResponseBody(body) => {
                let ends = body.end_of_stream;
                let answer = if self.response_duplex { piece(body.body, ends) } else { unchanged() };
                then_finished(Action::Say(say(Answer::ResponseBody(answer))), ends)
            }
            Part::ResponseTrailers(_) => {
                then_finished(Action::Say(say(Answer::ResponseTrailers(TrailersResponse {}))), true)
            }
        }
    }

    fn request_headers(&mut self, sent: &HttpHeaders, metadata: Option<&Metadata>) -> Vec<Action> {
        if !matches!(self.state, State::Start) {
            return self.end(Err("the headers of a request came twice"));
        }
        let head = match Head::read(sent, metadata) {
            Ok(head) => head,
            Err(fault) => return self.refuse(&fault),
        };
        if !head.is_for_engine() {
            return self.place(head, Body::Unseen, Pending::Headers);
        }
        if sent.end_of_stream {
            return self.place(head, Body::Whole(Bytes::new()), Pending::Headers);
        }
        match self.mode {
            Mode::None | Mode::Streamed => self.place(head, Body::Unseen, Pending::Headers),
            Mode::Buffered | Mode::Partial => {
                self.read(head);
                vec![Action::Say(say(Answer::RequestHeaders(unchanged())))]
            }
            Mode::StreamedEarly | Mode::Duplex => {
                self.read(head);
                Vec::new()
            }
            Mode::Unknown(number) => self.refuse(&misconfigured(&format!(
                "sends bodies in mode {number}, which this picker does not know; set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"
            ))),
        }
    }

    fn read(&mut self, head: Head) {
        let reading = Reading { head, body: BytesMut::new(), pieces: Vec::new() };
        self.state = State::Reading(Box::new(reading));
    }

    fn request_body(&mut self, sent: HttpBody) -> Vec<Action> {
        let State::Reading(reading) = &mut self.state else {
            return match self.state {
                State::Start => self.refuse(&headers_first()),
                _ if self.mode == Mode::Duplex => {
                    vec![Action::Say(say(Answer::RequestBody(piece(sent.body, sent.end_of_stream))))]
                }
                _ => vec![Action::Say(say(Answer::RequestBody(unchanged())))],
            };
        };
        if reading.body.len() + sent.body.len() > defaults::MAX_BODY_BYTES {
            let limit = defaults::MAX_BODY_BYTES / (1024 * 1024);
            let message = format!("the request's body is larger than the limit of {limit} MiB");
            return self.refuse(&Fault::new(ErrorKind::TooLarge, message));
        }
        // Whatever else the mode, the first piece is often the whole body.
        if reading.body.is_empty() && sent.end_of_stream {
            reading.body = BytesMut::from(sent.body);
            reading.pieces.push(reading.body.len());
        } else {
            reading.body.extend_from_slice(&sent.body);
            reading.pieces.push(sent.body.len());
        }
        if sent.end_of_stream || matches!(self.mode, Mode::Buffered | Mode::Partial) {
            return self.whole(sent.end_of_stream, false);
        }
        Vec::new()
    }

    fn request_trailers(&mut self) -> Vec<Action> {
        match self.state {
            State::Start => self.refuse(&headers_first()),
            State::Reading(_) => self.whole(true, true),
            _ => vec![Action::Say(say(Answer::RequestTrailers(TrailersResponse {})))],
        }
    }

    /// All has come of a request that will come before it is answered.
    fn whole(&mut self, ended: bool, trailers: bool) -> Vec<Action> {
        let State::Reading(reading) = std::mem::replace(&mut self.state, State::Start) else {
            return Vec::new();
        };
        let Reading { head, body, pieces } = *reading;
        let sent = body.freeze();
        let body = match self.mode {
            Mode::Partial if !ended => Body::Perhaps(sent.clone()),
            _ => Body::Whole(sent.clone()),
        };
        let pending = match self.mode {
            Mode::Buffered | Mode::Partial if trailers => {
                return self.refuse(&Fault::invalid("the request has no body"));
            }
            Mode::Buffered | Mode::Partial => Pending::Body(sent),
            Mode::StreamedEarly => Pending::Pieces { sent, pieces, trailers },
            _ => Pending::Duplex { trailers },
        };
        self.place(head, body, pending)
    }

    fn place(&mut self, head: Head, body: Body, pending: Pending) -> Vec<Action> {
        self.state = State::Placing(pending);
        vec![Action::Place(Box::new(Asked { head, body }))]
    }

    /// The answers that tell where a request goes. The first that can names the replica.
    fn passed(&self, chosen: &Chosen, pending: Pending) -> Vec<Action> {
        let named = |answer| {
            let mut message = say(answer);
            message.dynamic_metadata = Some(chosen.metadata());
            Action::Say(message)
        };
        let headers = || named(Answer::RequestHeaders(change(Some(chosen.headers(None)), None)));
        let body = chosen.body.clone().unwrap_or_default();
        let (mut actions, trailers) = match pending {
            Pending::Headers => (vec![headers()], false),
            Pending::Body(sent) => {
                let new = is_new(&body, &sent).then(|| Mutation::Body(body.clone()));
                // Where the proxy buffers all, the length that its client gave goes on as it is.
                let length = new.as_ref().filter(|_| self.mode == Mode::Buffered).map(|_| body.len());
                (vec![named(Answer::RequestBody(change(Some(chosen.headers(length)), new)))], false)
            }
            Pending::Pieces { sent, pieces, trailers } => {
                let mut actions = vec![headers()];
                let answers = exchanged(&body, &sent, &pieces);
                actions.extend(answers.map(|answer| Action::Say(say(Answer::RequestBody(answer)))));
                (actions, trailers)
            }
            Pending::Duplex { trailers } => {
                let mut actions = vec![headers()];
                let cut = pieces(body);
                let last = cut.len().saturating_sub(1);
                let say_piece = |(at, bytes)| say(Answer::RequestBody(piece(bytes, at == last && !trailers)));
                actions.extend(cut.into_iter().enumerate().map(|cut| Action::Say(say_piece(cut))));
                (actions, trailers)
            }
        };
        if trailers {
            actions.push(Action::Say(say(Answer::RequestTrailers(TrailersResponse {}))));
        }
        actions
    }

    fn response_headers(&self, sent: &HttpHeaders) -> Vec<Action> {
        let all = || sent.headers.iter().flat_map(|headers| &headers.headers);
        let internal = all().map(|header| &header.key).filter(|name| headers::is_internal(name));
        let remove = HeaderMutation { set_headers: Vec::new(), remove_headers: internal.cloned().collect() };
        let answer = change((!remove.remove_headers.is_empty()).then_some(remove), None);
        let mut actions = Vec::new();
        // Before that it is the proxy's own response: it has sent the request nowhere.
        if matches!(self.state, State::Passed) {
            let status = all().find(|header| header.key == ":status").map(value);
            let status = status.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            actions.push(Action::Begun(status.unwrap_or(0)));
        }
        actions.push(Action::Say(say(Answer::ResponseHeaders(answer))));
        if sent.end_of_stream {
            actions.push(Action::Finished);
        }
        actions
    }
}

fn then_finished(action: Action, ends: bool) -> Vec<Action> {
    if ends { vec![action, Action::Finished] } else { vec![action] }
}

fn headers_first() -> Fault {
    misconfigured("sends a body without its headers; set request_header_mode to SEND")
}

/// The proxy's filter is set up in a way that cannot work.
fn misconfigured(what: &str) -> Fault {
    Fault::new(ErrorKind::Internal, format!("the gateway's ext_proc filter {what}"))
}

impl From<(u16, HeaderMap, Bytes)> for Reply {
    fn from((status, headers, body): (u16, HeaderMap, Bytes)) -> Self {
        Self { status, headers, body, details: "answered".to_owned() }
    }
}

#[cfg(test)]
mod tests;
