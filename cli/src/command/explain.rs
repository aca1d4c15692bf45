//! `strata explain`: how requests were routed, as the scheduler says it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use strata_hop::{Body, Component, HopToken, Mtls, Upstream, forward};
use strata_operator::host::status;
use strata_wire::decisions::{Considered, DECISIONS, Decisions, Explained, Standing};

use crate::args;
use crate::output::{self, Format, NotRunning};

/// How long the scheduler may take.
const ASK: Duration = Duration::from_secs(5);
/// Most that its answer may be.
const MOST_BYTES: usize = 64 << 20;

pub(super) fn run(args: &args::Explain) -> anyhow::Result<()> {
    let (url, token) = scheduler(args)?;
    let mut query = format!("?last={}", args.last);
    for (name, value) in [("request", &args.request), ("model", &args.model)] {
        if let Some(value) = value {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            let _ = write!(query, "&{name}={value}");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let decisions =
        runtime.block_on(ask(&url, token, &query)).with_context(|| format!("cannot ask {url}"))?;
    output::print(&match args.output {
        Format::Json => format!("{:#}\n", serde_json::to_value(&decisions)?),
        Format::Table => text(&decisions, args.request.as_deref()),
    })
}

/// Where the scheduler is, and what it is shown.
fn scheduler(args: &args::Explain) -> anyhow::Result<(String, Option<HopToken>)> {
    if let Some(url) = &args.scheduler {
        return Ok((url.trim_end_matches('/').to_owned(), HopToken::from_env()));
    }
    let state = args.state.folder()?;
    let stack =
        status::read(&state).with_context(|| format!("cannot read {}", status::file(&state).display()))?;
    let Some(url) = stack.as_ref().and_then(|stack| stack.scheduler()).map(|layer| layer.url.clone()) else {
        return Err(NotRunning(format!(
            "no scheduler runs on {}: start one with `strata up -f FOLDER`, name another folder with --state, or say where it is with --scheduler URL",
            state.display()
        ))
        .into());
    };
    Ok((url, status::hop_token(&state)))
}

async fn ask(url: &str, token: Option<HopToken>, query: &str) -> anyhow::Result<Decisions> {
    let mut request = http::Request::get(format!("{url}{DECISIONS}{query}")).body(Body::empty())?;
    if let Some(token) = token {
        token.attach(request.headers_mut());
    }
    // In a pod it has the scheduler's own certificates.
    let mtls = Mtls::from_env(Component::Scheduler)?;
    let upstream = Upstream::to(mtls.as_ref(), &[Component::Scheduler]);
    let response = upstream.send(request, ASK).await?;
    anyhow::ensure!(response.status().is_success(), "it answered {}", response.status());
    let body = forward::collect(response.into_body(), ASK, MOST_BYTES).await?;
    Ok(serde_json::from_slice(&body)?)
}

fn text(decisions: &Decisions, request: Option<&str>) -> String {
    if decisions.decisions.is_empty() {
        return match request {
            Some(request) => {
                format!("the scheduler knows no request {request}: it keeps the latest 256 choices\n")
            }
            None => "the scheduler has routed nothing yet\n".to_owned(),
        };
    }
    let told: Vec<String> = decisions.decisions.iter().map(one).collect();
    told.join("\n")
}

fn one(it: &Explained) -> String {
    let at =
        jiff::Timestamp::from_millisecond(it.at_ms as i64).map_or_else(|_| "?".to_owned(), |t| t.to_string());
    let answer =
        it.answer_tokens.map_or_else(String::new, |tokens| format!(" answer of {tokens:.0} tokens,"));
    let text = format!(
        "{} {} model {}, {} prefix blocks,{answer} held {:.0} ms, policy {}\n{}: {}\n",
        at, it.request, it.model, it.blocks, it.held_ms, it.policy, it.replica, it.why
    );
    let weights = &it.weights;
    let headings = [
        "REPLICA".to_owned(),
        String::new(),
        "SCORE".to_owned(),
        format!("HIT*{:.0}", weights.prefix),
        format!("QUEUE*-{:.0}", weights.queue),
        format!("DECODE*-{:.0}", weights.decode),
        format!("LATENCY*-{:.0}", weights.latency),
        "CACHED".to_owned(),
        "RUNNING".to_owned(),
        "WAITING".to_owned(),
        "TOKENS WAITING".to_owned(),
        "IN FLIGHT".to_owned(),
        "TTFT".to_owned(),
        "TPOT".to_owned(),
    ];
    let rows: Vec<_> = it.candidates.iter().map(row).collect();
    if rows.is_empty() {
        return text;
    }
    if it.candidates.iter().all(|c| c.session.is_none() && c.adapter.is_none()) {
        return text + &output::table(headings.each_ref().map(String::as_str), &rows);
    }
    let more = [format!("SESSION*{:.0}", weights.session), format!("ADAPTER*{:.0}", weights.adapter)];
    let rows: Vec<_> =
        rows.into_iter().zip(&it.candidates).map(|(row, c)| longer(&row, &wishes(c))).collect();
    text + &output::table(longer(&headings, &more).each_ref().map(String::as_str), &rows)
}

/// What a request with a session, or for an adapter, finds at a replica.
fn wishes(c: &Considered) -> [String; 2] {
    [c.session, c.adapter].map(|score| score.map_or_else(|| "-".to_owned(), |score| format!("{score:.2}")))
}

fn longer(row: &[String; 14], more: &[String; 2]) -> [String; 16] {
    std::array::from_fn(|at| row.iter().chain(more).nth(at).cloned().unwrap_or_default())
}

fn row(c: &Considered) -> [String; 14] {
    let known = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.0}"));
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
    let standing = match c.standing {
        Standing::Picked => "picked",
        Standing::Open => "",
        Standing::Full => "full",
        Standing::Out => "out",
    };
    [
        c.replica.clone(),
        standing.to_owned(),
        format!("{:.1}", c.score),
        format!("{:.2}", c.hit),
        format!("{:.2}", c.queue),
        format!("{:.2}", c.decode),
        format!("{:.2}", c.latency),
        format!("{:.0}{}", c.cached_tokens, if c.told { "" } else { " (guess)" }),
        known(c.running),
        known(c.waiting),
        format!("{:.0}", c.waiting_tokens),
        c.in_flight.to_string(),
        ms(c.first_token_ms),
        ms(c.inter_token_ms),
    ]
}

#[cfg(test)]
mod tests {
    use strata_wire::decisions::Weights;
    use strata_wire::replicas::Policy;

    use super::*;

    #[test]
    fn a_choice_is_a_sentence_and_a_table() {
        let picked = Considered {
            replica: "m-0".into(),
            standing: Standing::Picked,
            score: 41.2,
            hit: 0.857,
            queue: 0.0,
            decode: 0.016,
            latency: 0.1,
            session: None,
            adapter: None,
            cached_tokens: 768.0,
            told: true,
            in_flight: 2,
            running: Some(1.0),
            waiting: Some(0.0),
            waiting_tokens: 0.0,
            first_token_ms: Some(120.4),
            inter_token_ms: None,
        };
        let out = Considered {
            replica: "m-1".into(),
            standing: Standing::Out,
            told: false,
            running: None,
            ..picked.clone()
        };
        let it = Explained {
            at_ms: 1_780_000_000_000,
            request: "0195-a".into(),
            model: "m".into(),
            held_ms: 12.3,
            policy: Policy::Prefix,
            replica: "m-0".into(),
            why: "it holds 12 of the prompt's 14 blocks, more than any other".into(),
            blocks: 14,
            answer_tokens: None,
            weights: Weights {
                prefix: 50.0,
                queue: 20.0,
                decode: 15.0,
                latency: 10.0,
                session: 100.0,
                adapter: 20.0,
            },
            candidates: vec![picked, out],
        };
        let mut leant = it.clone();
        leant.answer_tokens = Some(210.4);
        leant.candidates[0].session = Some(1.0);
        leant.candidates[0].adapter = Some(0.8);
        let leant = text(&Decisions { decisions: vec![leant] }, None);
        assert!(leant.contains("14 prefix blocks, answer of 210 tokens, held"), "{leant}");
        assert!(
            leant.lines().nth(2).is_some_and(|line| line.ends_with("TPOT  SESSION*100  ADAPTER*20")),
            "{leant}"
        );
        assert!(
            leant.lines().nth(3).is_some_and(|line| line.ends_with("-     1.00         0.80")),
            "{leant}"
        );
        insta::assert_snapshot!(text(&Decisions { decisions: vec![it] }, None), @r"
        2026-05-28T20:26:40Z 0195-a model m, 14 prefix blocks, held 12 ms, policy prefix
        m-0: it holds 12 of the prompt's 14 blocks, more than any other
        REPLICA          SCORE  HIT*50  QUEUE*-20  DECODE*-15  LATENCY*-10  CACHED       RUNNING  WAITING  TOKENS WAITING  IN FLIGHT  TTFT    TPOT
        m-0      picked  41.2   0.86    0.00       0.02        0.10         768          1        0        0               2          120 ms  -
        m-1      out     41.2   0.86    0.00       0.02        0.10         768 (guess)  ?        0        0               2          120 ms  -
        ");
        insta::assert_snapshot!(text(&Decisions::default(), Some("x")), @"the scheduler knows no request x: it keeps the latest 256 choices");
    }
}
