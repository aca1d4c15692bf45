//! Compiles grammars, within bounds, and keeps those that were used last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, oneshot};

use super::form::Grammar;
use super::vocabulary;
use crate::tokenizer::Tokenizer;

/// Bytes of one grammar, as it was sent.
pub const MAX_GRAMMAR_BYTES: usize = 128 * 1024;
/// Grammars that are kept.
const KEPT: usize = 32;
/// Grammars that are compiled at the same time, and that wait for it.
const COMPILING: usize = 2;
const WAITING: usize = 32;
/// Threads that compute masks.
const MASKS: usize = 2;
/// Longest wait for a compiled grammar.
const PATIENCE: Duration = Duration::from_secs(10);
/// Grammars refer to themselves, and what walks them recurses; a stack is only paid for once used.
const STACK: usize = 64 * 1024 * 1024;

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// More text than is compiled.
    #[error("is {bytes} bytes and at most {MAX_GRAMMAR_BYTES} are compiled; shorten it")]
    TooLarge {
        /// How much.
        bytes: usize,
    },
    /// It is no grammar, or one that cannot be enforced.
    #[error("cannot be enforced: {0}")]
    Refused(String),
    /// It takes too long to compile.
    #[error("is not compiled after {} s; make it simpler", PATIENCE.as_secs())]
    TooSlow,
    /// Too many others are being compiled.
    #[error("cannot be compiled now, too many others are; try again shortly")]
    Busy,
}

/// A grammar ready to be followed, by any number of answers.
pub struct Compiled {
    first: Mutex<Matcher>,
    threads: Arc<ThreadPool>,
    /// Whether following it went wrong inside the compiler's own state, which its answers share.
    broken: AtomicBool,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Compiled {
    /// A matcher at the grammar's beginning.
    pub(super) fn matcher(&self) -> Matcher {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn threads(&self) -> &ThreadPool {
        &self.threads
    }

    /// Has it compiled anew for the next request.
    pub(super) fn spoil(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Kept {
    /// With the time of the last use, in uses.
    compiled: HashMap<String, (u64, Arc<Compiled>)>,
    uses: u64,
}

/// What is made at the first structured request: many engines never see one.
struct Tools {
    factory: ParserFactory,
    compilers: ThreadPool,
    masks: Arc<ThreadPool>,
}

/// The grammars of one model.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocab: usize,
    tools: OnceLock<Result<Tools, String>>,
    kept: Mutex<Kept>,
    waiting: Arc<Semaphore>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammars {
    /// Grammars over this vocabulary; `vocab` is the length of a row of logits.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: usize) -> Self {
        Self {
            tokenizer,
            vocab,
            tools: OnceLock::new(),
            kept: Mutex::default(),
            waiting: Arc::new(Semaphore::new(COMPILING + WAITING)),
        }
    }

    /// The grammar, compiled now or before.
    pub async fn compile(self: &Arc<Self>, grammar: Grammar) -> Result<Arc<Compiled>, GrammarError> {
        let key = grammar.key();
        if key.len() > MAX_GRAMMAR_BYTES {
            return Err(GrammarError::TooLarge { bytes: key.len() });
        }
        if let Some(compiled) = self.recall(&key) {
            return Ok(compiled);
        }
        let place = self.waiting.clone().try_acquire_owned().map_err(|_| GrammarError::Busy)?;
        let (done, outcome) = oneshot::channel();
        let grammars = self.clone();
        // The first use builds the trie of the vocabulary, which is work too.
        let started = tokio::task::spawn_blocking(move || {
            let inner = grammars.clone();
            match grammars.tools() {
                Ok(tools) => tools.compilers.spawn(move || {
                    let compiled = inner.build(&grammar);
                    if let Ok(compiled) = &compiled {
                        inner.keep(key, compiled.clone());
                    }
                    // Only now: the work cannot be stopped, and so it keeps its place.
                    drop(place);
                    let _ = done.send(compiled);
                }),
                Err(message) => drop(done.send(Err(GrammarError::Refused(message)))),
            }
        });
        let waited = tokio::time::timeout(PATIENCE, async move {
            let _ = started.await;
            outcome.await
        });
        match waited.await {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(GrammarError::Refused("its compilation failed; this is a defect".into())),
            Err(_) => Err(GrammarError::TooSlow),
        }
    }

    fn recall(&self, key: &str) -> Option<Arc<Compiled>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let now = kept.uses;
        let (used, compiled) = kept.compiled.get_mut(key)?;
        *used = now;
        let compiled = compiled.clone();
        if compiled.broken.load(Ordering::Relaxed) {
            kept.compiled.remove(key);
            return None;
        }
        Some(compiled)
    }

    fn keep(&self, key: String, compiled: Arc<Compiled>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.compiled.len() >= KEPT {
            let oldest = kept.compiled.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| kept.compiled.remove(&key));
        }
        let now = kept.uses;
        kept.compiled.insert(key, (now, compiled));
    }

    fn tools(&self) -> Result<&Tools, String> {
        let made = self.tools.get_or_init(|| {
            let trie = vocabulary::trie(&self.tokenizer, self.vocab);
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&trie, InferenceCapabilities::default(), &slices)
                .map_err(|e| brief(&e.to_string()))?;
            factory.quiet();
            let limits = factory.limits_mut();
            limits.verbose_errors = false;
            // One to two KiB each, and they are kept as long as the grammar is.
            limits.max_lexer_states = 30_000;
            let threads = |name: &'static str, count| {
                ThreadPoolBuilder::new()
                    .num_threads(count)
                    .stack_size(STACK)
                    .thread_name(move |i| format!("{name}-{i}"))
                    .build()
                    .map_err(|e| format!("no threads for it: {e}"))
            };
            Ok(Tools {
                factory,
                compilers: threads("grammar", COMPILING)?,
                masks: Arc::new(threads("mask", MASKS)?),
            })
        });
        made.as_ref().map_err(Clone::clone)
    }

    fn build(&self, grammar: &Grammar) -> Result<Arc<Compiled>, GrammarError> {
        let tools = self.tools().map_err(GrammarError::Refused)?;
        let begun = std::time::Instant::now();
        let lowered = grammar.lower().map_err(GrammarError::Refused)?;
        let parser =
            tools.factory.create_parser(lowered).map_err(|e| GrammarError::Refused(brief(&e.to_string())))?;
        let mut matcher = Matcher::new(Ok(parser));
        // A schema that nothing satisfies is found here, not by the first answer.
        matcher.compute_mask().map_err(|e| GrammarError::Refused(no_answer(&e.to_string())))?;
        tracing::debug!(seconds = begun.elapsed().as_secs_f64(), "grammar compiled");
        Ok(Arc::new(Compiled {
            first: Mutex::new(matcher),
            threads: tools.masks.clone(),
            broken: AtomicBool::new(false),
        }))
    }
}

/// Why not one token may begin an answer.
fn no_answer(message: &str) -> String {
    if message.contains("NoExtensionBias") {
        return "no text matches it: its parts exclude one another, or a rule leads back to itself whatever is \
                chosen; give each rule, or part of the schema, an alternative that ends without it"
            .to_owned();
    }
    brief(message)
}

/// The beginning of what the compiler says, on one line.
pub(super) fn brief(message: &str) -> String {
    let lines: Vec<&str> =
        message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('<')).collect();
    let line = lines.join("; ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
