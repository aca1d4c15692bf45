use proptest::prelude::*;
use prost::Message;
use prost_types::value::Kind;

use super::super::cut::PIECE;
use super::super::proto::{HeaderMap as Headers, HeaderValue, HttpTrailers, ProcessingResponse};
use super::*;

const BODY: &str = r#"{"model":"m","prompt":"hi"}"#;

fn headers(pairs: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let header = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
        ..HeaderValue::default()
    };
    HttpHeaders { headers: Some(Headers { headers: pairs.iter().map(header).collect() }), end_of_stream }
}

fn post() -> Part {
    let pairs = [(":method", "POST"), (":path", "/v1/completions"), ("cookie", "a=b")];
    Part::RequestHeaders(headers(&pairs, false))
}

fn body(bytes: impl Into<Bytes>, end_of_stream: bool) -> HttpBody {
    HttpBody { body: bytes.into(), end_of_stream }
}

fn part(part: Part) -> ProcessingRequest {
    ProcessingRequest { part: Some(part), ..ProcessingRequest::default() }
}

/// The first message of a proxy that is set up so.
fn first(of: Part, request_body_mode: i32, early: bool) -> ProcessingRequest {
    let config = ProtocolConfiguration {
        request_body_mode,
        response_body_mode: if request_body_mode == DUPLEX { DUPLEX } else { 0 },
        send_body_without_waiting_for_header_response: early,
    };
    ProcessingRequest { protocol_config: Some(config), ..part(of) }
}

fn chosen(body: Option<Bytes>) -> Chosen {
    let set = [(http::HeaderName::from_static("x-strata-request-id"), http::HeaderValue::from_static("id"))];
    Chosen {
        endpoint: "10.0.0.1:8000".to_owned(),
        set: set.into_iter().collect(),
        remove: vec!["cookie".to_owned(), "x-gateway-destination-endpoint".to_owned()],
        body,
    }
}

/// Of the one request for a replica among these: what is here of the body.
fn placed(actions: &[Action]) -> &Body {
    match actions {
        [Action::Place(asked)] => &asked.body,
        other => panic!("no replica is asked for: {other:?}"),
    }
}

fn said(actions: Vec<Action>) -> Vec<ProcessingResponse> {
    let message = |action| match action {
        Action::Say(message) => message,
        other => panic!("not said: {other:?}"),
    };
    actions.into_iter().map(message).collect()
}

/// What a message tells the proxy: which part it answers, the headers that are set, and the body.
fn told(message: &ProcessingResponse) -> (&'static str, Vec<String>, Option<Mutation>) {
    let (name, response) = match message.answer.as_ref().unwrap() {
        Answer::RequestHeaders(answer) => ("headers", answer.response.clone()),
        Answer::RequestBody(answer) => ("body", answer.response.clone()),
        Answer::ResponseHeaders(answer) => ("response headers", answer.response.clone()),
        Answer::ResponseBody(answer) => ("response body", answer.response.clone()),
        Answer::RequestTrailers(_) => ("trailers", None),
        Answer::ResponseTrailers(_) => ("response trailers", None),
        Answer::Immediate(_) => ("immediate", None),
    };
    let response = response.unwrap_or_default();
    let set = response.header_mutation.unwrap_or_default().set_headers.into_iter().map(|option| {
        assert_eq!(option.append_action, super::super::proto::OVERWRITE_OR_ADD);
        let header = option.header.unwrap();
        format!("{}={}", header.key, String::from_utf8(header.raw_value.to_vec()).unwrap())
    });
    (name, set.collect(), response.body_mutation.and_then(|mutation| mutation.mutation))
}

fn metadata(message: &ProcessingResponse) -> Option<String> {
    let namespace = &message.dynamic_metadata.as_ref()?.fields["envoy.lb"];
    match &namespace.kind {
        Some(Kind::StructValue(inner)) => match &inner.fields["x-gateway-destination-endpoint"].kind {
            Some(Kind::StringValue(text)) => Some(text.clone()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

const DESTINATION: &str = "x-gateway-destination-endpoint=10.0.0.1:8000";
const MINTED: &str = "x-strata-request-id=id";

#[test]
fn a_buffered_body_is_answered_once() {
    for mode in [2, 3] {
        let mut exchange = Exchange::new();
        let answers = said(exchange.on(first(post(), mode, false)));
        assert_eq!(told(&answers[0]), ("headers", vec![], None));
        assert!(metadata(&answers[0]).is_none());
        let actions = exchange.on(part(Part::RequestBody(body(BODY, true))));
        assert_eq!(placed(&actions), &Body::Whole(BODY.into()));
        assert!(!exchange.is_reading());
        let answers = said(exchange.resolved(Ok(chosen(Some("{}".into())))));
        let (name, set, mutation) = told(&answers[0]);
        assert_eq!((answers.len(), name, mutation), (1, "body", Some(Mutation::Body("{}".into()))));
        let length = (mode == 2).then(|| "content-length=2".to_owned());
        let wanted: Vec<String> =
            [DESTINATION.to_owned(), MINTED.to_owned()].into_iter().chain(length).collect();
        assert_eq!(set, wanted);
        assert_eq!(metadata(&answers[0]).unwrap(), "10.0.0.1:8000");
    }
}

#[test]
fn what_is_set_is_not_removed() {
    assert_eq!(chosen(None).headers(None).remove_headers, ["cookie"]);
}

#[test]
fn a_body_that_stays_is_not_sent_back() {
    let mut exchange = Exchange::new();
    exchange.on(first(post(), 2, false));
    let sent = Bytes::from(BODY);
    let Body::Whole(read) = placed(&exchange.on(part(Part::RequestBody(body(sent.clone(), true))))).clone()
    else {
        panic!("not whole");
    };
    let (_, set, mutation) = told(&said(exchange.resolved(Ok(chosen(Some(read)))))[0]);
    assert_eq!((set, mutation), (vec![DESTINATION.to_owned(), MINTED.to_owned()], None));
}

#[test]
fn a_body_in_full_duplex_comes_back_after_the_choice() {
    for (trailers, config) in [(false, true), (true, true), (false, false)] {
        let mut exchange = Exchange::new();
        let message = if config { first(post(), 4, false) } else { part(post()) };
        assert_eq!(exchange.on(message), []);
        let text = "x".repeat(PIECE);
        assert_eq!(exchange.on(part(Part::RequestBody(body(text.clone(), false)))), []);
        let last = if trailers {
            assert_eq!(exchange.on(part(Part::RequestBody(body("yz", false)))), []);
            Part::RequestTrailers(HttpTrailers {})
        } else {
            Part::RequestBody(body("yz", true))
        };
        let actions = exchange.on(part(last));
        let Body::Whole(whole) = placed(&actions).clone() else { panic!("not whole") };
        assert_eq!(whole, format!("{text}yz"));
        let answers = said(exchange.resolved(Ok(chosen(Some(whole)))));
        assert_eq!(told(&answers[0]).1, [DESTINATION, MINTED]);
        assert_eq!(metadata(&answers[0]).unwrap(), "10.0.0.1:8000");
        let streamed = |body: &str, end_of_stream| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            let streamed = super::super::proto::StreamedBodyResponse { body, end_of_stream };
            ("body", vec![], Some(Mutation::Streamed(streamed)))
        };
        assert_eq!(told(&answers[1]), streamed(&text, false));
        assert_eq!(told(&answers[2]), streamed("yz", !trailers));
        let rest: Vec<&str> = answers[3..].iter().map(|answer| told(answer).0).collect();
        assert_eq!(rest, if trailers { vec!["trailers"] } else { vec![] });
    }
}

#[test]
fn pieces_that_want_an_answer_get_one_each() {
    for (new, last) in [(None, None), (Some("{\"model\":1"), Some(Mutation::Clear(true)))] {
        let mut exchange = Exchange::new();
        assert_eq!(exchange.on(first(post(), 1, true)), []);
        assert_eq!(exchange.on(part(Part::RequestBody(body("{\"model\":", false)))), []);
        assert_eq!(exchange.on(part(Part::RequestBody(body("1", false)))), []);
        let actions = exchange.on(part(Part::RequestBody(body("}", true))));
        let Body::Whole(whole) = placed(&actions).clone() else { panic!("not whole") };
        let answers = said(exchange.resolved(Ok(chosen(Some(new.map_or(whole, Bytes::from))))));
        assert_eq!(told(&answers[0]).1, [DESTINATION, MINTED]);
        let mutations: Vec<Option<Mutation>> = answers[1..].iter().map(|answer| told(answer).2).collect();
        let two = new.map(|_| [Mutation::Body("{\"model\":".into()), Mutation::Body("1".into())]);
        let [one, two] = two.map_or([None, None], |two| two.map(Some));
        assert_eq!(mutations, [one, two, last]);
    }
}

#[test]
fn without_a_body_the_headers_alone_decide() {
    for mode in [0, 1] {
        let mut exchange = Exchange::new();
        assert_eq!(placed(&exchange.on(first(post(), mode, false))), &Body::Unseen);
        let answers = said(exchange.resolved(Ok(chosen(None))));
        assert_eq!(told(&answers[0]), ("headers", vec![DESTINATION.to_owned(), MINTED.to_owned()], None));
        let answers = said(exchange.on(part(Part::RequestBody(body("x", true)))));
        assert_eq!(told(&answers[0]), ("body", vec![], None));
    }
}

#[test]
fn a_refusal_ends_the_stream() {
    let mut exchange = Exchange::new();
    exchange.on(first(post(), 4, false));
    exchange.on(part(Part::RequestBody(body(BODY, true))));
    let fault = Fault::new(ErrorKind::Overloaded, "none").retry_after(std::time::Duration::from_millis(1500));
    let actions = exchange.resolved(Err(Reply::from(&fault)));
    let [Action::Say(message), Action::End(Ok(()))] = &actions[..] else { panic!("{actions:?}") };
    let Some(Answer::Immediate(reply)) = &message.answer else { panic!("{message:?}") };
    assert_eq!((reply.status.unwrap().code, reply.details.as_str()), (503, "strata_overloaded"));
    let set = &reply.headers.as_ref().unwrap().set_headers;
    let names: Vec<&str> = set.iter().map(|option| option.header.as_ref().unwrap().key.as_str()).collect();
    assert_eq!(names, ["content-type", "retry-after"]);
    assert_eq!(set[1].header.as_ref().unwrap().raw_value, "2");
    assert!(reply.body.starts_with(b"{\"error\":{\"message\":\"none\""));
    assert_eq!(exchange.on(part(Part::ResponseHeaders(headers(&[], true)))), []);
}

#[test]
fn a_body_that_is_too_large_is_refused_when_it_is() {
    let mut exchange = Exchange::new();
    exchange.on(first(post(), 4, false));
    let half = Bytes::from(vec![b'x'; defaults::MAX_BODY_BYTES / 2]);
    for _ in 0..2 {
        assert_eq!(exchange.on(part(Part::RequestBody(body(half.clone(), false)))), []);
    }
    let actions = exchange.on(part(Part::RequestBody(body("x", true))));
    let [Action::Say(message), Action::End(Ok(()))] = &actions[..] else { panic!("{actions:?}") };
    let Some(Answer::Immediate(reply)) = &message.answer else { panic!("{message:?}") };
    assert_eq!(reply.status.unwrap().code, 413);
}

#[test]
fn the_response_is_told_and_passes() {
    let mut exchange = Exchange::new();
    exchange.on(first(post(), 4, false));
    exchange.on(part(Part::RequestBody(body(BODY, true))));
    exchange.resolved(Ok(chosen(Some(BODY.into()))));
    let pairs = [(":status", "200"), ("x-strata-decision", "d"), ("server", "engine")];
    let actions = exchange.on(part(Part::ResponseHeaders(headers(&pairs, false))));
    let [Action::Begun(200), Action::Say(message)] = &actions[..] else { panic!("{actions:?}") };
    let Some(Answer::ResponseHeaders(answer)) = &message.answer else { panic!("{message:?}") };
    let mutation = answer.response.clone().unwrap().header_mutation.unwrap();
    assert_eq!(mutation.remove_headers, ["x-strata-decision"]);
    let answers = said(exchange.on(part(Part::ResponseBody(body("data", false)))));
    assert_eq!(told(&answers[0]).0, "response body");
    let actions = exchange.on(part(Part::ResponseBody(body("", true))));
    assert_eq!(actions[1..], [Action::Finished]);
}

#[test]
fn who_only_watches_is_not_answered() {
    let mut exchange = Exchange::new();
    let message = ProcessingRequest { observability_mode: true, ..part(post()) };
    assert_eq!(exchange.on(message), [Action::End(Ok(()))]);
}

#[test]
fn a_filter_that_cannot_work_is_told_why() {
    let tell = |message| {
        let actions = Exchange::new().on(message);
        let [Action::Say(message), Action::End(Ok(()))] = &actions[..] else { panic!("{actions:?}") };
        let Some(Answer::Immediate(reply)) = &message.answer else { panic!("{message:?}") };
        let error: strata_wire::ErrorBody = serde_json::from_slice(&reply.body).unwrap();
        format!("{} {}", reply.status.unwrap().code, error.error.message)
    };
    insta::assert_snapshot!(tell(part(Part::RequestBody(body(BODY, true)))), @"500 the gateway's ext_proc filter sends a body without its headers; set request_header_mode to SEND");
    insta::assert_snapshot!(tell(first(post(), 5, false)), @"500 the gateway's ext_proc filter sends bodies in mode 5, which this picker does not know; set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED");
}

fn any_part() -> impl Strategy<Value = Part> {
    let pieces = prop_oneof![Just(BODY.to_owned()), "[a-z{}\"]{0,9}"];
    let bodies = (pieces, any::<bool>()).prop_map(|(text, end)| body(text, end));
    let bodies = bodies.boxed();
    let paths = prop_oneof![Just("/v1/completions"), Just("/sleep"), Just("/v1/models")];
    let heads = (paths, any::<bool>(), any::<bool>()).prop_map(|(path, post, end)| {
        headers(&[(":method", if post { "POST" } else { "GET" }), (":path", path)], end)
    });
    prop_oneof![
        3 => heads.prop_map(Part::RequestHeaders),
        4 => bodies.clone().prop_map(Part::RequestBody),
        1 => Just(Part::RequestTrailers(HttpTrailers {})),
        2 => any::<bool>().prop_map(|end| Part::ResponseHeaders(headers(&[(":status", "200")], end))),
        2 => bodies.prop_map(Part::ResponseBody),
        1 => Just(Part::ResponseTrailers(HttpTrailers {})),
    ]
}

proptest! {
    /// In whatever order parts come, and whenever a replica is found or refused: a replica is asked for
    /// once at most, nothing is said after the end, what waits stays bounded, and who refuses ends.
    #[test]
    fn any_order_of_messages_is_survived(
        mode in 0i32..6,
        early: bool,
        parts in prop::collection::vec((any_part(), any::<bool>()), 0..40),
        refuses: bool,
    ) {
        let mut exchange = Exchange::new();
        let (mut asked, mut open, mut ended) = (0, None, false);
        for (n, (of, finds)) in parts.into_iter().enumerate() {
            let message = if n == 0 { first(of, mode, early) } else { part(of) };
            let mut actions = exchange.on(message);
            if let (Some(body), true) = (&open, finds) {
                let outcome = match body {
                    _ if refuses => Err(Reply::from(&Fault::invalid("no"))),
                    Body::Unseen => Ok(chosen(None)),
                    Body::Whole(body) | Body::Perhaps(body) => Ok(chosen(Some(body.clone()))),
                };
                actions.extend(exchange.resolved(outcome));
                open = None;
            }
            prop_assert!(exchange.late.len() <= MAX_LATE);
            for action in actions {
                prop_assert!(!ended, "{action:?} after the end");
                match action {
                    Action::Place(request) => {
                        asked += 1;
                        open = Some(request.body);
                    }
                    Action::End(_) => ended = true,
                    Action::Say(message) => {
                        prop_assert!(message.answer.is_some());
                        // What is said can be read.
                        let bytes = message.encode_to_vec();
                        prop_assert_eq!(ProcessingResponse::decode(&bytes[..]).unwrap(), message);
                    }
                    Action::Begun(_) | Action::Finished => {}
                }
            }
        }
        prop_assert!(asked <= 1);
        let rest = exchange.refuse(&Fault::invalid("late"));
        if ended || matches!(exchange.state, State::Passed) {
            prop_assert_eq!(rest, []);
        } else {
            prop_assert_eq!(&rest[1..], &[Action::End(Ok(()))]);
        }
    }

    /// However a body is cut in full duplex, it comes back whole and in pieces that a proxy takes.
    #[test]
    fn a_body_in_full_duplex_is_kept(sizes in prop::collection::vec(0usize..150_000, 1..6)) {
        let mut exchange = Exchange::new();
        exchange.on(first(post(), DUPLEX, false));
        let (mut sent, last) = (Vec::new(), sizes.len() - 1);
        for (n, size) in sizes.into_iter().enumerate() {
            let piece: Vec<u8> = (0..size).map(|at| (at * 7 + n) as u8).collect();
            sent.extend_from_slice(&piece);
            exchange.on(part(Part::RequestBody(body(piece, n == last))));
        }
        let answers = said(exchange.resolved(Ok(chosen(Some(Bytes::from(sent.clone()))))));
        let (mut got, count) = (Vec::new(), answers.len());
        for (n, answer) in answers.iter().enumerate().skip(1) {
            let Some(Mutation::Streamed(piece)) = told(answer).2 else { panic!("{answer:?}") };
            prop_assert!(piece.body.len() <= PIECE);
            prop_assert_eq!(piece.end_of_stream, n + 1 == count);
            got.extend_from_slice(&piece.body);
        }
        prop_assert_eq!(got, sent);
    }

    /// Bytes that are no message are an error, and nothing else.
    #[test]
    fn any_bytes_are_decoded_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        at in 0usize..400,
        with: u8,
    ) {
        let _ = ProcessingRequest::decode(&bytes[..]);
        let mut damaged = first(post(), 4, true).encode_to_vec();
        let at = at % damaged.len();
        damaged[at] = with;
        if let Ok(message) = ProcessingRequest::decode(&damaged[..]) {
            Exchange::new().on(message);
        }
    }
}
