//! `strata bench`: options by vLLM's names.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::Engine;

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata bench serve --base-url http://127.0.0.1:8000 --num-prompts 64 --max-concurrency 16 \\
    --random-prefix-len 384 --random-input-len 128 --random-output-len 64 --ignore-eos --temperature 0
  strata bench throughput --model file:///models/smollm2.gguf --num-prompts 64
  strata bench latency --model file:///models/smollm2.gguf --batch-size 1
  strata bench roofline

Options and the members of the results carry the names of `vllm bench`.")]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: BenchCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Measure a server of the OpenAI API, of any make
    Serve(Box<BenchServe>),
    /// Measure how many tokens a second the engine does in this process
    Throughput(Box<BenchThroughput>),
    /// Measure how long the engine takes for one batch, in this process
    Latency(Box<BenchLatency>),
    /// Measure what the machine can do: memory read, and f32, bf16 and int8 operations
    Roofline {
        /// Threads [default: the machine's cores]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: Option<u16>,
    },
}

/// Which API a server is asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The completions API
    #[value(alias = "vllm")]
    Openai,
    /// The chat completions API
    OpenaiChat,
}

/// How a rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RampUp {
    /// By the same amount with each request
    Linear,
    /// By the same factor with each request
    Exponential,
}

/// Where prompts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatasetName {
    /// Random prompts behind one common prefix
    Random,
    /// Random prompts behind several prefixes
    #[value(name = "prefix_repetition")]
    PrefixRepetition,
    /// A file of conversations, in ShareGPT's form
    Sharegpt,
    /// A file with a JSON object a line: `prompt` (text or token ids) and `output_tokens`
    Custom,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct Workload {
    /// Where prompts come from
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) dataset_name: DatasetName,
    /// The file, for `sharegpt` and `custom`
    #[arg(long, value_name = "FILE", required_if_eq_any = [("dataset_name", "sharegpt"), ("dataset_name", "custom")])]
    pub(crate) dataset_path: Option<PathBuf>,
    /// Prompts to send
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) num_prompts: usize,
    /// Seed of prompts and arrivals
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Tokens of each prompt, behind the prefix, whatever the dataset; one with prompts of its own has none to
    /// set
    #[arg(long, value_name = "N")]
    pub(crate) input_len: Option<usize>,
    /// Tokens to generate for each prompt, whatever the dataset
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) output_len: Option<usize>,
    /// Tokens that prompts begin with, whatever the dataset
    #[arg(long, value_name = "N")]
    pub(crate) prefix_len: Option<usize>,
    /// Tokens of each random prompt, behind the prefix
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) random_input_len: usize,
    /// Tokens to generate for each random prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) random_output_len: usize,
    /// Tokens that all random prompts begin with
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) random_prefix_len: usize,
    /// Lengths vary by up to this share of them, from 0 to below 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = range_ratio)]
    pub(crate) random_range_ratio: f64,
    /// Different prefixes of `prefix_repetition`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub(crate) prefix_repetition_num_prefixes: usize,
    /// Tokens of each of its prefixes
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) prefix_repetition_prefix_len: usize,
    /// Tokens of each of its prompts, behind the prefix
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) prefix_repetition_suffix_len: usize,
    /// Tokens to generate for each of its prompts
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) prefix_repetition_output_len: usize,
    /// Tokens to generate for each prompt of `sharegpt` [default: as many as its answer has]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) sharegpt_output_len: Option<usize>,
    /// Tokens to generate for each prompt of `custom` [default: its `output_tokens`]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) custom_output_len: Option<usize>,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata bench serve --base-url http://127.0.0.1:8000 --num-prompts 64 --max-concurrency 16 --ignore-eos
  strata bench serve --base-url https://api.example --header 'authorization=Bearer KEY' --request-rate 4 \\
    --goodput ttft:500 tpot:50 --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,99 \\
    --save-result --result-filename result.json

Tokens are counted by the server's usage. A request that fails is counted and its error is shown; the exit
code is 1 when none succeeded. Without --tokenizer random prompts are English words, of about one token each;
with it they are token ids of exactly the length asked for.")]
#[expect(clippy::struct_excessive_bools, reason = "one for each switch of the command line")]
pub(crate) struct BenchServe {
    /// Which API the server is asked by
    #[arg(long, value_enum, default_value = "openai")]
    pub(crate) backend: Backend,
    /// Address of the server, without /v1 [default: that of --host and --port]
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "port"])]
    pub(crate) base_url: Option<String>,
    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port of the server
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Path of the API [default: /v1/completions, or /v1/chat/completions with --backend openai-chat]
    #[arg(long, value_name = "PATH")]
    pub(crate) endpoint: Option<String>,
    /// Name of the model [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Name by which requests ask for the model, where it is another than --model
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// A model whose tokenizer random prompts are made of: a GGUF file or a folder
    #[arg(long, value_name = "URI")]
    pub(crate) tokenizer: Option<String>,
    #[command(flatten)]
    pub(crate) workload: Workload,
    /// Requests a second on average; `inf` sends all at once
    #[arg(long, value_name = "RPS", default_value = "inf", value_parser = positive)]
    pub(crate) request_rate: f64,
    /// 1 for a Poisson process, less for bursts, more for even gaps
    #[arg(long, value_name = "SHAPE", default_value = "1", value_parser = finite)]
    pub(crate) burstiness: f64,
    /// A rate that rises from the first request to the last, instead of one that stays
    #[arg(long, value_enum, value_name = "HOW", requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"], conflicts_with = "request_rate")]
    pub(crate) ramp_up_strategy: Option<RampUp>,
    /// Requests a second that it begins with
    #[arg(long, value_name = "RPS", value_parser = finite, requires = "ramp_up_strategy")]
    pub(crate) ramp_up_start_rps: Option<f64>,
    /// Requests a second that it ends with
    #[arg(long, value_name = "RPS", value_parser = finite, requires = "ramp_up_strategy")]
    pub(crate) ramp_up_end_rps: Option<f64>,
    /// Requests at once; the others wait here
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_concurrency: Option<usize>,
    /// Requests before, which do not count
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) num_warmups: usize,
    /// Seconds to wait for the server to answer at all
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) ready_check_timeout_sec: u64,
    /// A header of every request
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    pub(crate) header: Vec<String>,
    /// Before the number of each request, in `x-request-id`
    #[arg(long, value_name = "TEXT", default_value = "bench-")]
    pub(crate) request_id_prefix: String,
    /// Generate on to the full length
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Sampling: 0 takes the likeliest token [default of these: the server's]
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) temperature: Option<f64>,
    /// Sampling: share of the probability that is kept
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) top_p: Option<f64>,
    /// Sampling: number of tokens that are kept
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) top_k: Option<i64>,
    /// Sampling: least probability beside the likeliest
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) min_p: Option<f64>,
    /// Sampling: penalty by count
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f64>,
    /// Sampling: penalty by presence
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f64>,
    /// Sampling: penalty of what was said before
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) repetition_penalty: Option<f64>,
    /// Log probabilities to ask for, of so many tokens at each place
    #[arg(long, value_name = "N")]
    pub(crate) logprobs: Option<u32>,
    /// Adapters that the server has; each request asks for one of them by chance
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(crate) lora_modules: Vec<String>,
    /// More members of every request's body, as a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) extra_body: Option<String>,
    /// Metrics that are told with their spread: ttft, tpot, itl, e2el
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', default_value = "ttft,tpot,itl")]
    pub(crate) percentile_metrics: Vec<String>,
    /// Percentiles of these
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "99", value_parser = percentile)]
    pub(crate) metric_percentiles: Vec<f64>,
    /// Upper limits in milliseconds by which a request is good: ttft, tpot, e2el
    #[arg(long, value_name = "METRIC:MS", num_args = 1..)]
    pub(crate) goodput: Vec<String>,
    /// Write the result as JSON
    #[arg(long)]
    pub(crate) save_result: bool,
    /// With the times of each request
    #[arg(long)]
    pub(crate) save_detailed: bool,
    /// Add the result to the file, as a line of its own
    #[arg(long)]
    pub(crate) append_result: bool,
    /// What the run is called, in the JSON and in the name of its file [default: the API]
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// A further member of the JSON
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    pub(crate) metadata: Vec<String>,
    /// Folder of the JSON
    #[arg(long, value_name = "DIR")]
    pub(crate) result_dir: Option<PathBuf>,
    /// Name of its file [default: by API, model and time]
    #[arg(long, value_name = "FILE")]
    pub(crate) result_filename: Option<PathBuf>,
}

#[derive(ClapArgs, Debug)]
#[command(
    mut_arg("listen", |arg| arg.hide(true)),
    mut_arg("drain_grace", |arg| arg.hide(true)),
    mut_arg("kv_transfer_host", |arg| arg.hide(true)),
    mut_arg("kv_transfer_port", |arg| arg.hide(true)),
    mut_arg("kv_transfer_size", |arg| arg.hide(true)),
    mut_arg("kv_events_config", |arg| arg.hide(true)),
    mut_arg("otlp_traces_endpoint", |arg| arg.hide(true)),
)]
pub(crate) struct BenchThroughput {
    #[command(flatten)]
    pub(crate) engine: Engine,
    #[command(flatten)]
    pub(crate) workload: Workload,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) n: usize,
    /// Sampling: 0 takes the likeliest token
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(crate) temperature: f32,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) output_json: Option<PathBuf>,
}

#[derive(ClapArgs, Debug)]
#[command(
    mut_arg("listen", |arg| arg.hide(true)),
    mut_arg("drain_grace", |arg| arg.hide(true)),
    mut_arg("kv_transfer_host", |arg| arg.hide(true)),
    mut_arg("kv_transfer_port", |arg| arg.hide(true)),
    mut_arg("kv_transfer_size", |arg| arg.hide(true)),
    mut_arg("kv_events_config", |arg| arg.hide(true)),
    mut_arg("otlp_traces_endpoint", |arg| arg.hide(true)),
)]
pub(crate) struct BenchLatency {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) input_len: usize,
    /// Tokens to generate for each
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) output_len: usize,
    /// Prompts at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) batch_size: usize,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) n: usize,
    /// Sampling: 0 takes the likeliest token
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(crate) temperature: f32,
    /// Seed of prompts and sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Batches before, which do not count
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) num_iters_warmup: usize,
    /// Batches that count
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = at_least_one)]
    pub(crate) num_iters: usize,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) output_json: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("must be a whole number of at least 1".to_owned()),
    }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite()).ok_or_else(|| "must be a number".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let above = |n: &f64| *n > 0.0;
    text.parse().ok().filter(above).ok_or_else(|| "must be a number above 0, or `inf`".to_owned())
}

fn finite(text: &str) -> Result<f64, String> {
    number(text).ok().filter(|n| *n > 0.0).ok_or_else(|| "must be a number above 0".to_owned())
}

fn range_ratio(text: &str) -> Result<f64, String> {
    let within = |n: &f64| (0.0..1.0).contains(n);
    number(text).ok().filter(within).ok_or_else(|| "must be from 0 to below 1".to_owned())
}

fn percentile(text: &str) -> Result<f64, String> {
    let within = |n: &f64| (0.0..=100.0).contains(n);
    number(text).ok().filter(within).ok_or_else(|| "must be from 0 to 100".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_ranges() {
        assert_eq!(positive("inf"), Ok(f64::INFINITY));
        assert_eq!((finite("0.5"), percentile("99.9"), range_ratio("0")), (Ok(0.5), Ok(99.9), Ok(0.0)));
        for (reader, wrong) in [
            (positive as fn(&str) -> Result<f64, String>, "0"),
            (positive, "NaN"),
            (finite, "inf"),
            (percentile, "101"),
            (range_ratio, "1"),
            (number, "x"),
        ] {
            assert!(reader(wrong).is_err(), "{wrong}");
        }
        assert!(at_least_one("0").is_err());
    }
}
