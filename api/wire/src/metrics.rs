//! Metric names. The engine's carry vLLM's names, so that existing dashboards and scalers work; the
//! scheduler's carry the Gateway API Inference Extension's. `prometheus-client` appends `_total` to
//! counters, so counters stand here without it.

/// Names of the engine's metrics.
pub mod engine {
    /// Gauge: sequences in the running batch.
    pub const RUNNING: &str = "vllm:num_requests_running";
    /// Gauge: sequences that wait to be scheduled.
    pub const WAITING: &str = "vllm:num_requests_waiting";
    /// Gauge: share of KV-cache blocks in use, 0 to 1.
    pub const KV_USAGE: &str = "vllm:kv_cache_usage_perc";
    /// Counter: prompt tokens looked up in the prefix cache.
    pub const PREFIX_QUERIES: &str = "vllm:prefix_cache_queries";
    /// Counter: prompt tokens found there.
    pub const PREFIX_HITS: &str = "vllm:prefix_cache_hits";
    /// Counter: prompt tokens that the prefix cache did not have, looked up below it: in host memory, on
    /// disk, with other engines.
    pub const EXTERNAL_QUERIES: &str = "vllm:external_prefix_cache_queries";
    /// Counter: prompt tokens found there.
    pub const EXTERNAL_HITS: &str = "vllm:external_prefix_cache_hits";
    /// Histogram: how long a block of the KV cache had its contents until they were given up.
    pub const BLOCK_LIFETIME: &str = "vllm:kv_block_lifetime_seconds";
    /// Histogram: how long before that they were last of use.
    pub const BLOCK_IDLE: &str = "vllm:kv_block_idle_before_evict_seconds";
    /// Histogram: time between two uses of the same contents.
    pub const BLOCK_REUSE_GAP: &str = "vllm:kv_block_reuse_gap_seconds";
    /// Counter: sequences evicted from the batch and begun again.
    pub const PREEMPTIONS: &str = "vllm:num_preemptions";
    /// Counter: prompt tokens processed.
    pub const PROMPT_TOKENS: &str = "vllm:prompt_tokens";
    /// Counter: prompt tokens taken from the cache.
    pub const PROMPT_TOKENS_CACHED: &str = "vllm:prompt_tokens_cached";
    /// Counter: tokens generated.
    pub const GENERATION_TOKENS: &str = "vllm:generation_tokens";
    /// Counter by `finished_reason`: requests finished.
    pub const REQUEST_SUCCESS: &str = "vllm:request_success";
    /// Histogram: tokens in a step.
    pub const ITERATION_TOKENS: &str = "vllm:iteration_tokens_total";
    /// Histogram: time to first token.
    pub const TTFT: &str = "vllm:time_to_first_token_seconds";
    /// Histogram: time between two tokens.
    pub const ITL: &str = "vllm:inter_token_latency_seconds";
    /// Histogram: mean time per output token of a request.
    pub const TPOT: &str = "vllm:request_time_per_output_token_seconds";
    /// Histogram: whole request.
    pub const E2E: &str = "vllm:e2e_request_latency_seconds";
    /// Histogram: time spent waiting.
    pub const QUEUE_TIME: &str = "vllm:request_queue_time_seconds";
    /// Histogram: time spent in prefill.
    pub const PREFILL_TIME: &str = "vllm:request_prefill_time_seconds";
    /// Histogram: time spent in decode.
    pub const DECODE_TIME: &str = "vllm:request_decode_time_seconds";
    /// Histogram: prompt tokens of a request.
    pub const REQUEST_PROMPT_TOKENS: &str = "vllm:request_prompt_tokens";
    /// Histogram: generated tokens of a request.
    pub const REQUEST_GENERATION_TOKENS: &str = "vllm:request_generation_tokens";
    /// Info gauge: block size and count in its labels (`block_size`, `num_gpu_blocks`).
    pub const CACHE_CONFIG: &str = "vllm:cache_config_info";
    /// Counter: times that tokens of a sequence were guessed.
    pub const SPEC_DRAFTS: &str = "vllm:spec_decode_num_drafts";
    /// Counter: tokens guessed.
    pub const SPEC_DRAFT_TOKENS: &str = "vllm:spec_decode_num_draft_tokens";
    /// Counter: guessed tokens that came true.
    pub const SPEC_ACCEPTED: &str = "vllm:spec_decode_num_accepted_tokens";
    /// Counter by `position`: guessed tokens that came true.
    pub const SPEC_ACCEPTED_PER_POSITION: &str = "vllm:spec_decode_num_accepted_tokens_per_pos";
    /// Gauge by `sleep_state` (`awake`, `weights_offloaded`, `discard_all`): 1 for the present one.
    pub const SLEEP_STATE: &str = "vllm:engine_sleep_state";
    /// Gauge, its value a time in seconds: which adapters run and wait, in its labels (`max_lora`,
    /// `running_lora_adapters`, `waiting_lora_adapters`; names parted by commas).
    pub const LORA_REQUESTS: &str = "vllm:lora_requests_info";
    /// Histogram: time from the first step to the last token.
    pub const INFERENCE_TIME: &str = "vllm:request_inference_time_seconds";
    /// Histogram: answers that a request asks for.
    pub const REQUEST_N: &str = "vllm:request_params_n";
    /// Histogram: tokens that a request may generate for each answer.
    pub const REQUEST_MAX_TOKENS: &str = "vllm:request_params_max_tokens";
    /// Gauge, Strata's own: tokens of the prompts that wait.
    pub const WAITING_TOKENS: &str = "strata:waiting_tokens";
    /// Gauge, Strata's own: sequences that a step holds at most.
    pub const MAX_SEQUENCES: &str = "strata:max_sequences";
    /// Gauge, Strata's own: prompt tokens a second, measured over recent steps.
    pub const PREFILL_RATE: &str = "strata:prefill_tokens_per_second";
    /// Counter, Strata's own: spans that a collector has taken. Absent without one.
    pub const SPANS_EXPORTED: &str = "strata:trace_spans_exported";
    /// Counter, Strata's own: spans that were lost. Absent without a collector.
    pub const SPANS_DROPPED: &str = "strata:trace_spans_dropped";
}
