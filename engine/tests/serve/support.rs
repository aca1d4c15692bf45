//! What the serving tests share: a backend whose answers depend on nothing but the prompt, a small
//! tokenizer, and an HTTP client that reads bodies piece by piece.

use std::sync::Arc;

use strata_engine::backend::{BLOCK_TOKENS, Backend};
use strata_engine::lora::Adapters;
use strata_engine::model::load::{GgufTokenizer, SpecialTokens, TokenizerSource};
use strata_engine::runtime::{Engine, EngineConfig, EngineParts, ModelCard, Speculation};
use strata_engine::step::StepLimits;
use strata_engine::template::ChatTemplate;
use strata_engine::tier::Tiers;
use strata_engine::tokenizer::Tokenizer;
use strata_engine::transfer::Transfer;

/// Ends a message and an answer. Before it in the vocabulary are 256 bytes and `<|im_start|>`.
pub(crate) const IM_END: u32 = 257;
/// Begins a tool call; text, not special.
pub(crate) const TOOL_CALL: u32 = 258;
/// Size of the vocabulary.
pub(crate) const VOCAB: usize = 259;

/// A byte-level tokenizer without merges: one token for each byte.
pub(crate) fn tokenizer() -> Tokenizer {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|b| {
            let hidden = (0..b).filter(|o| !visible(*o)).count() as u32;
            if visible(b) { char::from(b) } else { char::from_u32(256 + hidden).unwrap() }.to_string()
        })
        .collect();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<tool_call>"].map(str::to_owned));
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3, 4]);
    let source = GgufTokenizer {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        token_types,
        ..GgufTokenizer::default()
    };
    let special = SpecialTokens { bos: None, eos: vec![IM_END], add_bos: false, add_eos: false };
    Tokenizer::build(&TokenizerSource::Gguf(source), &special).unwrap()
}

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Limits for tests: a context of 1,024 tokens.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        step: StepLimits { tokens: 128, sequences: 16 },
        max_model_len: None,
        prefix_cache: true,
        max_waiting: 64,
        step_timeout: std::time::Duration::from_secs(60),
    }
}

/// An engine called `test-model` on this backend.
pub(crate) fn engine(backend: impl Backend + 'static, config: EngineConfig) -> Arc<Engine> {
    with_tiers(backend, config, Tiers::default())
}

/// The same with tiers below its KV cache.
pub(crate) fn with_tiers(backend: impl Backend + 'static, config: EngineConfig, tiers: Tiers) -> Arc<Engine> {
    with_transfer(backend, config, tiers, None)
}

/// The same with blocks that go to and come from other engines.
pub(crate) fn with_transfer(
    backend: impl Backend + 'static,
    config: EngineConfig,
    tiers: Tiers,
    transfer: Option<Arc<Transfer>>,
) -> Arc<Engine> {
    whole(backend, config, tiers, transfer, None, None)
}

/// The same with guesses.
pub(crate) fn guessing(
    backend: impl Backend + 'static,
    config: EngineConfig,
    speculation: Option<Speculation>,
) -> Arc<Engine> {
    whole(backend, config, Tiers::default(), None, speculation, None)
}

/// The same with adapters, and perhaps with guesses.
pub(crate) fn adapting(
    backend: impl Backend + 'static,
    config: EngineConfig,
    speculation: Option<Speculation>,
    adapters: Adapters,
) -> Arc<Engine> {
    whole(backend, config, Tiers::default(), None, speculation, Some(adapters))
}

fn whole(
    backend: impl Backend + 'static,
    config: EngineConfig,
    tiers: Tiers,
    transfer: Option<Arc<Transfer>>,
    speculation: Option<Speculation>,
    adapters: Option<Adapters>,
) -> Arc<Engine> {
    let parts = EngineParts {
        backend: Box::new(backend),
        tokenizer: tokenizer(),
        template: Some(ChatTemplate::new(TEMPLATE.into(), String::new(), "<|im_end|>".into()).unwrap()),
        card: ModelCard { name: "test-model".into(), created: 1_700_000_000, template_overhead: 40 },
        tiers,
        transfer,
        speculation,
        reopen: None,
        adapters,
    };
    Engine::start(parts, config).unwrap()
}

/// Blocks for this many tokens.
pub(crate) fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
