//! `strata bench`: from options to the benchmarks, and their results to the screen and to files.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use strata_bench::arrival::{Arrival, Ramp, Rise};
use strata_bench::dataset::{self, Prefixes, Request, Uniform, Vocabulary};
use strata_bench::offline::{self, Generating, Offline};
use strata_bench::report::{self, Telling};
use strata_bench::serve::{self, ServeOptions};
use strata_bench::summary::{Goodput, Metric};
use strata_bench::{Api, Target};
use strata_engine::backend::cpu::roofline;

use super::layers::engine_options;
use crate::args::bench::{
    Backend, BenchCommand, BenchLatency, BenchServe, BenchThroughput, DatasetName, RampUp, Workload,
};
use crate::output;

/// Runs one of the benchmarks.
pub(super) fn run(what: BenchCommand) -> anyhow::Result<()> {
    match what {
        BenchCommand::Serve(args) => serve(*args),
        BenchCommand::Throughput(args) => throughput(*args),
        BenchCommand::Latency(args) => latency(*args),
        BenchCommand::Roofline { threads } => limits(threads),
    }
}

fn limits(threads: Option<u16>) -> anyhow::Result<()> {
    let threads =
        threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    output::print(&format!("{}\n", serde_json::to_string_pretty(&roofline::measure(threads))?))
}

fn serve(args: BenchServe) -> anyhow::Result<()> {
    let metrics: Vec<Metric> =
        args.percentile_metrics.iter().map(|name| metric(name)).collect::<Result<_, _>>()?;
    let goodput = goodput(&args.goodput)?;
    let api = match args.backend {
        Backend::Openai => Api::Completions,
        Backend::OpenaiChat => Api::Chat,
    };
    let metadata: Vec<(String, String)> =
        args.metadata.iter().map(|pair| named(pair)).collect::<Result<_, _>>()?;
    let options = ServeOptions {
        target: Target {
            base_url: args.base_url.clone().unwrap_or_else(|| format!("http://{}:{}", args.host, args.port)),
            endpoint: args.endpoint.clone().unwrap_or_else(|| match api {
                Api::Completions => "/v1/completions".to_owned(),
                Api::Chat => "/v1/chat/completions".to_owned(),
            }),
            api,
            model: args.served_model_name.clone().or_else(|| args.model.clone()),
            headers: headers(&args.header)?,
            body: body(&args)?,
        },
        arrival: Arrival { rate: args.request_rate, burstiness: args.burstiness, ramp: ramp(&args)? },
        max_concurrency: args.max_concurrency,
        warmups: args.num_warmups,
        ready_within: Duration::from_secs(args.ready_check_timeout_sec),
        request_id_prefix: args.request_id_prefix.clone(),
        percentiles: args.metric_percentiles.clone(),
        goodput,
        adapters: args.lora_modules.clone(),
        seed: args.workload.seed,
    };
    let tokenizer = args.tokenizer.as_deref().map(offline::tokenizer).transpose()?;
    let requests = requests(&args.workload, tokenizer)?;
    // One thread is enough to send and read, and leaves the others to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = runtime.block_on(serve::run(options, requests))?;
    let telling = Telling { metrics, detailed: args.save_detailed, label: args.label, metadata };
    output::print(&report::text(&run, &telling))?;
    if args.save_result || args.append_result || args.result_filename.is_some() {
        let date = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
        let name = args.result_filename.unwrap_or_else(|| {
            let plain = |text: &str| text.replace('/', "-");
            let label = telling.label.as_deref().unwrap_or(run.backend);
            PathBuf::from(format!("{}-{}-{date}.json", plain(label), plain(&run.model)))
        });
        let path = args.result_dir.unwrap_or_default().join(name);
        let result = report::json(&run, &telling, &date);
        if args.append_result { append(&path, &result)? } else { write(&path, &result)? }
    }
    if run.summary.completed == 0 {
        bail!("none of {} requests succeeded", run.summary.failed);
    }
    Ok(())
}

fn throughput(args: BenchThroughput) -> anyhow::Result<()> {
    let generating = Generating { n: args.n, temperature: args.temperature, seed: args.workload.seed };
    let engine = Offline::open(engine_options(args.engine), generating)?;
    let requests = requests(&args.workload, Some(engine.tokenizer().clone()))?;
    let result = runtime()?.block_on(engine.throughput(&requests))?;
    output::print(&result.text())?;
    args.output_json.map_or(Ok(()), |path| write(&path, &result.json()))
}

fn latency(args: BenchLatency) -> anyhow::Result<()> {
    let generating = Generating { n: args.n, temperature: args.temperature, seed: args.seed };
    let engine = Offline::open(engine_options(args.engine), generating)?;
    let (warmups, iterations) = (args.num_iters_warmup, args.num_iters);
    let measured = engine.latency(args.batch_size, args.input_len, args.output_len, warmups, iterations);
    let result = runtime()?.block_on(measured)?;
    output::print(&result.text())?;
    args.output_json.map_or(Ok(()), |path| write(&path, &result.json()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn write(path: &Path, result: &Value) -> anyhow::Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(result)?);
    std::fs::write(path, text).with_context(|| format!("cannot write the result to {}", path.display()))
}

/// Adds the result to a file that has one a line.
fn append(path: &Path, result: &Value) -> anyhow::Result<()> {
    let written = std::fs::OpenOptions::new().create(true).append(true).open(path).and_then(|mut file| {
        // In one piece, for others may add to it too.
        file.write_all(format!("{result}\n").as_bytes())
    });
    written.with_context(|| format!("cannot add the result to {}", path.display()))
}

/// The rate that rises, if one is asked for.
fn ramp(args: &BenchServe) -> anyhow::Result<Option<Ramp>> {
    let Some(strategy) = args.ramp_up_strategy else { return Ok(None) };
    let (from, to) = args.ramp_up_start_rps.zip(args.ramp_up_end_rps).context("a ramp has two ends")?;
    if from > to {
        bail!("--ramp-up-start-rps {from} is above --ramp-up-end-rps {to}; a ramp rises");
    }
    let by = match strategy {
        RampUp::Linear => Rise::Linear,
        RampUp::Exponential => Rise::Exponential,
    };
    Ok(Some(Ramp { by, from, to }))
}

fn requests(
    args: &Workload,
    tokenizer: Option<std::sync::Arc<strata_engine::tokenizer::Tokenizer>>,
) -> anyhow::Result<Vec<Request>> {
    let path = || args.dataset_path.as_deref().context("--dataset-path is missing");
    let of_a_file = matches!(args.dataset_name, DatasetName::Sharegpt | DatasetName::Custom);
    if of_a_file && (args.input_len.is_some() || args.prefix_len.is_some()) {
        bail!(
            "--input-len and --prefix-len make prompts, and those of --dataset-path are there; leave them out"
        );
    }
    let vocabulary = || tokenizer.clone().map_or(Vocabulary::Words, Vocabulary::Tokens);
    let requests = match args.dataset_name {
        DatasetName::Random => {
            let shape = Uniform {
                count: args.num_prompts,
                prefix_len: args.prefix_len.unwrap_or(args.random_prefix_len),
                input_len: args.input_len.unwrap_or(args.random_input_len),
                output_len: args.output_len.unwrap_or(args.random_output_len),
                range_ratio: args.random_range_ratio,
            };
            dataset::uniform(shape, &vocabulary(), args.seed)
        }
        DatasetName::PrefixRepetition => {
            let shape = Prefixes {
                count: args.num_prompts,
                prefixes: args.prefix_repetition_num_prefixes,
                prefix_len: args.prefix_len.unwrap_or(args.prefix_repetition_prefix_len),
                suffix_len: args.input_len.unwrap_or(args.prefix_repetition_suffix_len),
                output_len: args.output_len.unwrap_or(args.prefix_repetition_output_len),
            };
            dataset::prefixes(shape, &vocabulary(), args.seed)
        }
        DatasetName::Sharegpt => {
            let tokenizer = tokenizer
                .context("the dataset sharegpt is cut by token counts; name a model with --tokenizer")?;
            let output_len = args.output_len.or(args.sharegpt_output_len);
            dataset::sharegpt(path()?, args.num_prompts, output_len, &tokenizer, args.seed)?
        }
        DatasetName::Custom => {
            dataset::custom(path()?, args.num_prompts, args.output_len.or(args.custom_output_len))?
        }
    };
    if requests.is_empty() {
        bail!("--num-prompts is 0: there is nothing to measure");
    }
    Ok(requests)
}

/// The members of every request's body.
fn body(args: &BenchServe) -> anyhow::Result<Map<String, Value>> {
    let mut body = Map::new();
    let numbers = [
        ("temperature", args.temperature),
        ("top_p", args.top_p),
        ("min_p", args.min_p),
        ("frequency_penalty", args.frequency_penalty),
        ("presence_penalty", args.presence_penalty),
        ("repetition_penalty", args.repetition_penalty),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.into());
        }
    }
    if let Some(top_k) = args.top_k {
        body.insert("top_k".to_owned(), top_k.into());
    }
    if args.ignore_eos {
        body.insert("ignore_eos".to_owned(), true.into());
    }
    match (args.logprobs, args.backend) {
        (Some(count), Backend::Openai) => drop(body.insert("logprobs".to_owned(), count.into())),
        (Some(count), Backend::OpenaiChat) => {
            body.insert("logprobs".to_owned(), true.into());
            body.insert("top_logprobs".to_owned(), count.into());
        }
        (None, _) => {}
    }
    if let Some(extra) = &args.extra_body {
        let extra: Map<String, Value> =
            serde_json::from_str(extra).context("--extra-body must be a JSON object")?;
        body.extend(extra);
    }
    Ok(body)
}

fn headers(pairs: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for pair in pairs {
        let (name, value) = named(pair)?;
        let name: HeaderName = name.parse().with_context(|| format!("`{name}` is no header"))?;
        // Not shown: it may be a key.
        let value =
            HeaderValue::from_str(&value).with_context(|| format!("the value of `{name}` is none"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn named(pair: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = pair.split_once('=').with_context(|| format!("`{pair}` must be NAME=VALUE"))?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn metric(name: &str) -> anyhow::Result<Metric> {
    let known = Metric::ALL.iter().find(|metric| metric.name() == name.trim());
    known.copied().with_context(|| format!("`{name}` is no metric; there are ttft, tpot, itl and e2el"))
}

fn goodput(limits: &[String]) -> anyhow::Result<Goodput> {
    let mut goodput = Goodput::new();
    for limit in limits {
        let read = limit.split_once(':').and_then(|(name, ms)| Some((metric(name).ok()?, ms.parse().ok()?)));
        match read {
            Some((metric, ms)) if metric != Metric::Itl && ms >= 0.0 => goodput.insert(metric, ms),
            _ => bail!(
                "--goodput `{limit}`: expected ttft, tpot or e2el, a colon and milliseconds, as in ttft:500"
            ),
        };
    }
    Ok(goodput)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_or_said_to_be_wrong() {
        let read = |limits: &[&str]| goodput(&limits.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>());
        let expected = Goodput::from([(Metric::Ttft, 500.0), (Metric::E2el, 2000.5)]);
        assert_eq!(read(&["ttft:500", "e2el:2000.5"]).unwrap(), expected);
        for wrong in ["ttft", "itl:5", "ttft:-1", "ttft:soon", "queue:1"] {
            let error = read(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("as in ttft:500"), "{error}");
        }
    }

    #[test]
    fn a_wrong_header_does_not_show_its_value() {
        let error = headers(&["authorization=Bearer s3cret\n".to_owned()]).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
