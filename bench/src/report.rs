//! How a run is told: a text for people, and JSON with the members that `vllm bench serve` writes.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::arrival::Rise;
use crate::serve::Run;
use crate::summary::{Metric, Outcome};

/// What of a run is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The metrics that are told with their spread.
    pub metrics: Vec<Metric>,
    /// Whether JSON has the times of each request.
    pub detailed: bool,
    /// What the run is called; by its API where it has no name.
    pub label: Option<String>,
    /// More members of the JSON.
    pub metadata: Vec<(String, String)>,
}

const WIDTH: usize = 60;

/// The text, with one line for each error that requests ended with.
pub fn text(run: &Run, telling: &Telling) -> String {
    let summary = &run.summary;
    let mut text = String::new();
    title(&mut text, "Serving Benchmark Result", '=');
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<44} {value}");
    };
    line("Successful requests:", summary.completed.to_string());
    line("Failed requests:", summary.failed.to_string());
    if let Some(limit) = run.max_concurrency {
        line("Maximum request concurrency:", limit.to_string());
    }
    if run.arrival.rate.is_finite() {
        line("Request rate configured (RPS):", format!("{:.2}", run.arrival.rate));
    }
    if let Some(ramp) = run.arrival.ramp {
        line("Request rate rises (RPS):", format!("{:.2} to {:.2}", ramp.from, ramp.to));
    }
    line("Benchmark duration (s):", format!("{:.2}", summary.duration));
    line("Total input tokens:", summary.total_input_tokens.to_string());
    line("Total cached input tokens:", summary.total_cached_tokens.to_string());
    line("Total generated tokens:", summary.total_output_tokens.to_string());
    line("Request throughput (req/s):", format!("{:.2}", summary.request_throughput()));
    if let Some(goodput) = summary.request_goodput {
        line("Request goodput (req/s):", format!("{goodput:.2}"));
    }
    line("Output token throughput (tok/s):", format!("{:.2}", summary.output_throughput()));
    line("Peak output token throughput (tok/s):", format!("{:.2}", summary.max_output_tokens_per_s));
    line("Peak concurrent requests:", summary.max_concurrent_requests.to_string());
    line("Total token throughput (tok/s):", format!("{:.2}", summary.total_token_throughput()));
    for (metric, spread) in summary.metrics.iter().filter(|(m, _)| telling.metrics.contains(m)) {
        let name = metric.name().to_uppercase();
        title(&mut text, heading(*metric), '-');
        let mut line = |which: &str, value: f64| {
            let name = format!("{which} {name} (ms):");
            let _ = writeln!(text, "{name:<44} {value:.2}");
        };
        line("Mean", spread.mean);
        line("Median", spread.median);
        for (p, value) in &spread.percentiles {
            line(&format!("P{p}"), *value);
        }
    }
    let _ = writeln!(text, "{}", "=".repeat(WIDTH));
    for (error, count) in errors(&run.outcomes) {
        let _ = writeln!(text, "{count} failed: {error}");
    }
    text
}

/// The JSON.
pub fn json(run: &Run, telling: &Telling, date: &str) -> Value {
    let summary = &run.summary;
    let rate = if run.arrival.rate.is_finite() { json!(run.arrival.rate) } else { json!("inf") };
    let mut members = json!({
        "date": date,
        "backend": run.backend,
        "label": telling.label.as_deref().unwrap_or(run.backend),
        "model_id": run.model,
        "num_prompts": run.outcomes.len(),
        "request_rate": rate,
        "burstiness": run.arrival.burstiness,
        "max_concurrency": run.max_concurrency,
        "duration": summary.duration,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.total_input_tokens,
        "total_cached_tokens": summary.total_cached_tokens,
        "total_output_tokens": summary.total_output_tokens,
        "request_throughput": summary.request_throughput(),
        "request_goodput": summary.request_goodput,
        "output_throughput": summary.output_throughput(),
        "total_token_throughput": summary.total_token_throughput(),
        "max_output_tokens_per_s": summary.max_output_tokens_per_s,
        "max_concurrent_requests": summary.max_concurrent_requests,
    });
    let Value::Object(members) = &mut members else { return members };
    if let Some(ramp) = run.arrival.ramp {
        let by = match ramp.by {
            Rise::Linear => "linear",
            Rise::Exponential => "exponential",
        };
        members.insert("ramp_up_strategy".into(), by.into());
        members.insert("ramp_up_start_rps".into(), ramp.from.into());
        members.insert("ramp_up_end_rps".into(), ramp.to.into());
    }
    for (name, value) in &telling.metadata {
        members.insert(name.clone(), json!(value));
    }
    for (metric, spread) in summary.metrics.iter().filter(|(m, _)| telling.metrics.contains(m)) {
        let name = metric.name();
        members.insert(format!("mean_{name}_ms"), json!(spread.mean));
        members.insert(format!("median_{name}_ms"), json!(spread.median));
        members.insert(format!("std_{name}_ms"), json!(spread.std));
        for (p, value) in &spread.percentiles {
            members.insert(format!("p{p}_{name}_ms"), json!(value));
        }
    }
    members.insert("error_counts".into(), errors(&run.outcomes).into_iter().collect::<Map<_, _>>().into());
    if telling.detailed {
        detail(members, &run.outcomes);
    }
    Value::Object(std::mem::take(members))
}

/// Times of each request, in seconds; a failed one has zeros and its error.
fn detail(members: &mut Map<String, Value>, outcomes: &[Outcome]) {
    let mut list = |name: &str, of: &dyn Fn(&Outcome) -> Value| {
        members.insert(name.to_owned(), outcomes.iter().map(of).collect());
    };
    let answer = |o: &Outcome| o.result.clone().ok();
    list("input_lens", &|o| answer(o).map_or(0, |a| a.prompt_tokens).into());
    list("output_lens", &|o| answer(o).map_or(0, |a| a.output_tokens).into());
    list("ttfts", &|o| answer(o).map_or(0.0, |a| a.ttft.as_secs_f64()).into());
    list("itls", &|o| {
        answer(o).map_or_else(Vec::new, |a| a.itl.iter().map(|t| json!(t.as_secs_f64())).collect()).into()
    });
    list("latencies", &|o| answer(o).map_or(0.0, |a| a.latency.as_secs_f64()).into());
    list("start_times", &|o| o.start.into());
    list("queue_times", &|o| o.queued.as_secs_f64().into());
    list("errors", &|o| o.result.as_ref().err().cloned().unwrap_or_default().into());
}

/// Each error with the number of requests that ended with it, the most frequent first.
fn errors(outcomes: &[Outcome]) -> Vec<(String, Value)> {
    let mut counted = std::collections::BTreeMap::<&str, u64>::new();
    for error in outcomes.iter().filter_map(|o| o.result.as_ref().err()) {
        *counted.entry(error).or_default() += 1;
    }
    let mut counted: Vec<_> = counted.into_iter().collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counted.into_iter().map(|(error, count)| (error.to_owned(), count.into())).collect()
}

fn heading(metric: Metric) -> &'static str {
    match metric {
        Metric::Ttft => "Time to First Token",
        Metric::Tpot => "Time per Output Token (excl. 1st token)",
        Metric::Itl => "Inter-token Latency",
        Metric::E2el => "End-to-end Latency",
    }
}

fn title(text: &mut String, title: &str, fill: char) {
    let sides = WIDTH.saturating_sub(title.len() + 2);
    let (left, right) = (sides / 2, sides - sides / 2);
    let side = |n| String::from(fill).repeat(n);
    let _ = writeln!(text, "{} {title} {}", side(left), side(right));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arrival::Arrival;
    use crate::summary::{Completed, Goodput, Summary};

    fn run() -> Run {
        let ms = Duration::from_millis;
        let answer = Completed {
            ttft: ms(40),
            latency: ms(100),
            itl: vec![ms(20), ms(40)],
            prompt_tokens: 12,
            cached_tokens: 0,
            output_tokens: 3,
        };
        let outcome = |result| Outcome { start: 5.0, queued: ms(1), result };
        let outcomes = vec![outcome(Ok(answer)), outcome(Err("HTTP 503: full".into()))];
        Run {
            backend: "openai",
            model: "m".into(),
            arrival: Arrival { rate: f64::INFINITY, burstiness: 1.0, ramp: None },
            max_concurrency: Some(2),
            summary: Summary::of(&outcomes, ms(500), &[99.0, 99.9], &Goodput::from([(Metric::Ttft, 50.0)])),
            outcomes,
        }
    }

    fn telling() -> Telling {
        Telling {
            metrics: vec![Metric::Ttft, Metric::Itl],
            detailed: true,
            label: None,
            metadata: vec![("machine".into(), "two cores".into())],
        }
    }

    #[test]
    fn people_read_a_text() {
        insta::assert_snapshot!(text(&run(), &telling()));
    }

    #[test]
    fn programs_read_the_members_of_vllm() {
        insta::assert_json_snapshot!(json(&run(), &telling(), "20261128-000000"));
    }
}
