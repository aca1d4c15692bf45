//! Backends that no model is behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use strata_engine::backend::{BLOCK_TOKENS, Backend, BackendError, BackendInfo, Logits, StepBatch};

use strata_engine::lora::{AdapterId, LoraWeights};

use crate::support::{IM_END, VOCAB};

/// What a test sees of, and does to, a [`FakeBackend`] that an engine owns.
#[derive(Clone, Default)]
pub(crate) struct Remote {
    begun: Arc<AtomicUsize>,
    steps: Arc<AtomicUsize>,
    fail_next: Arc<AtomicBool>,
    panic_next: Arc<AtomicBool>,
    batches: Arc<Mutex<Vec<StepBatch>>>,
    adapters: Arc<Mutex<BTreeMap<AdapterId, [u8; 32]>>>,
}

impl Remote {
    /// Steps begun so far, a held one included.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Steps run so far.
    pub(crate) fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// Makes the next step fail.
    pub(crate) fn fail_next(&self) {
        self.fail_next.store(true, Ordering::SeqCst);
    }

    /// Makes the next step panic.
    pub(crate) fn panic_next(&self) {
        self.panic_next.store(true, Ordering::SeqCst);
    }

    /// The adapters that it has.
    pub(crate) fn adapters(&self) -> Vec<AdapterId> {
        self.adapters.lock().unwrap().keys().copied().collect()
    }

    /// Everything that was run.
    pub(crate) fn batches(&self) -> Vec<StepBatch> {
        self.batches.lock().unwrap().clone()
    }
}

/// What the next token is.
enum Rule {
    /// A printable byte by a hash of all tokens before, read back out of the blocks.
    Hash,
    /// The bytes of a script one after the other, by how many tokens follow the prompt's last
    /// `assistant\n`; then the end of the answer.
    Script(Vec<u32>),
}

/// Keeps tokens where a model keeps keys and values, and makes the next token from what the blocks
/// hold: a wrong block table changes the answer.
pub(crate) struct FakeBackend {
    info: BackendInfo,
    cache: Vec<[u32; BLOCK_TOKENS]>,
    rule: Rule,
    remote: Remote,
    gate: Option<mpsc::Receiver<()>>,
}

impl FakeBackend {
    /// Answers by hash.
    pub(crate) fn new(total_blocks: usize) -> Self {
        let info = BackendInfo {
            name: "fake",
            device: "a test".into(),
            total_blocks,
            block_bytes: BLOCK_TOKENS * 4,
            vocab: VOCAB,
            max_model_len: 1024,
        };
        let cache = vec![[u32::MAX; BLOCK_TOKENS]; total_blocks];
        Self { info, cache, rule: Rule::Hash, remote: Remote::default(), gate: None }
    }

    /// Answers every chat with these tokens, and then ends.
    pub(crate) fn says(total_blocks: usize, tokens: Vec<u32>) -> Self {
        Self { rule: Rule::Script(tokens), ..Self::new(total_blocks) }
    }

    /// Each step waits for one send; dropping the sender opens the gate for good.
    pub(crate) fn gated(mut self) -> (Self, mpsc::Sender<()>) {
        let (open, gate) = mpsc::channel();
        self.gate = Some(gate);
        (self, open)
    }

    /// The test's end.
    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }

    fn next(&self, held: &[u32]) -> u32 {
        match &self.rule {
            Rule::Hash => by_hash(held),
            Rule::Script(script) => {
                let mark: Vec<u32> = b"assistant\n".iter().map(|b| u32::from(*b)).collect();
                let said = held
                    .windows(mark.len())
                    .rposition(|w| w == mark)
                    .map_or(0, |at| held.len() - at - mark.len());
                script.get(said).copied().unwrap_or(IM_END)
            }
        }
    }
}

/// The likeliest token after these.
pub(crate) fn by_hash(held: &[u32]) -> u32 {
    let hash = held.iter().fold(0x811c_9dc5u32, |h, t| (h ^ t).wrapping_mul(16_777_619));
    32 + (hash >> 7) % 95
}

impl Backend for FakeBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn forward_into(&mut self, step: &StepBatch, logits: &mut Logits) -> Result<(), BackendError> {
        self.remote.begun.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        self.remote.steps.fetch_add(1, Ordering::SeqCst);
        self.remote.batches.lock().unwrap().push(step.clone());
        if self.remote.fail_next.swap(false, Ordering::SeqCst) {
            return Err(BackendError::Device { backend: "fake", message: "told to fail".into() });
        }
        assert!(!self.remote.panic_next.swap(false, Ordering::SeqCst), "told to panic");
        for span in &step.spans {
            for i in 0..span.len {
                let at = span.context + i;
                self.cache[span.blocks[at / BLOCK_TOKENS] as usize][at % BLOCK_TOKENS] =
                    step.tokens[span.start + i];
            }
        }
        (logits.vocab, logits.data) = (VOCAB, Vec::new());
        let wanted = step.spans.iter().flat_map(|span| {
            let end = span.context + span.len;
            (end - span.logits.count()..end).map(move |at| (span, at + 1))
        });
        for (span, len) in wanted {
            let held: Vec<u32> = (0..len)
                .map(|at| self.cache[span.blocks[at / BLOCK_TOKENS] as usize][at % BLOCK_TOKENS])
                .collect();
            let mut likely = self.next(&held);
            if let Some(adapter) = &span.adapter {
                // Absent only by a mistake of the engine's.
                let digest = self.remote.adapters.lock().unwrap()[adapter];
                likely = 32 + (likely - 32 + 1 + u32::from(digest[0]) % 90) % 95;
            }
            // A second choice and a slope, so that sampling has something to choose from.
            let row = (0..VOCAB as u32).map(|t| match t {
                _ if t == likely => 8.0,
                _ if t == 32 + (likely + 1) % 95 => 7.0,
                _ => -(t as f32) / 100.0,
            });
            logits.data.extend(row);
        }
        Ok(())
    }

    fn layout(&self) -> String {
        "fake".into()
    }

    fn export_block(&self, block: u32, bytes: &mut Vec<u8>) {
        bytes.extend(self.cache[block as usize].iter().flat_map(|token| token.to_le_bytes()));
    }

    fn import_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let (expected, found) = (self.info.block_bytes, bytes.len());
        if found != expected {
            return Err(BackendError::BlockSize { expected, found });
        }
        for (to, from) in self.cache[block as usize].iter_mut().zip(bytes.as_chunks().0) {
            *to = u32::from_le_bytes(*from);
        }
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, weights: &LoraWeights) -> Result<(), BackendError> {
        self.remote.adapters.lock().unwrap().insert(id, weights.digest());
        Ok(())
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.remote.adapters.lock().unwrap().remove(&id);
    }

    fn matrix_products(&self) -> u64 {
        self.remote.steps() as u64
    }
}
