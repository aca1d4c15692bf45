//! What the one who follows a replica is told on the side: prompts that were sent there, and prompts whose
//! tokens another replica has told. Bounded: the oldest make room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::prompt::{Sent, Tokenised};

/// Notes that wait.
const MOST: usize = 256;
/// Bytes of all of them.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A note.
#[derive(Clone, Debug)]
pub enum Note {
    /// A prompt that it was sent.
    Sent(Sent),
    /// A prompt whose tokens are known.
    Tokenised(Arc<Tokenised>),
}

impl Note {
    fn bytes(&self) -> usize {
        match self {
            Self::Sent(sent) => sent.body.len() + 8 * sent.chain.len(),
            Self::Tokenised(prompt) => 4 * prompt.tokens.len() + 16 * prompt.claims.len(),
        }
    }
}

/// The notes of one replica.
#[derive(Debug, Default)]
pub struct Notes {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    notes: VecDeque<Note>,
    bytes: usize,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a note. Returns how many were dropped.
    pub fn push(&self, note: Note) -> usize {
        let bytes = note.bytes();
        if bytes > MOST_BYTES {
            return 1;
        }
        let mut waiting = self.lock();
        let mut dropped = 0;
        while waiting.notes.len() >= MOST || waiting.bytes + bytes > MOST_BYTES {
            let Some(oldest) = waiting.notes.pop_front() else { break };
            waiting.bytes -= oldest.bytes();
            dropped += 1;
        }
        waiting.bytes += bytes;
        waiting.notes.push_back(note);
        drop(waiting);
        self.came.notify_one();
        dropped
    }

    /// The oldest note, when there is one.
    pub async fn next(&self) -> Note {
        loop {
            if let Some(note) = self.pop() {
                return note;
            }
            self.came.notified().await;
        }
    }

    fn pop(&self) -> Option<Note> {
        let mut waiting = self.lock();
        let note = waiting.notes.pop_front()?;
        waiting.bytes -= note.bytes();
        Some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(model: &str, bytes: usize) -> Note {
        let body = [bytes::Bytes::from(vec![b' '; bytes])].into_iter().collect();
        Note::Sent(Sent { path: String::new(), model: model.to_owned(), body, chain: Vec::new() })
    }

    #[tokio::test]
    async fn the_newest_are_kept() {
        let notes = Notes::default();
        let dropped: usize = (0..MOST + 3).map(|i| notes.push(note(&i.to_string(), 1))).sum();
        assert_eq!(dropped, 3);
        let Note::Sent(oldest) = notes.next().await else { panic!("sent") };
        assert_eq!(oldest.model, "3");
        assert_eq!(notes.push(note("large", MOST_BYTES)), MOST - 1);
        assert_eq!(notes.push(note("too large", MOST_BYTES + 1)), 1);
        let Note::Sent(only) = notes.next().await else { panic!("sent") };
        assert_eq!(only.model, "large");
        assert!(notes.pop().is_none() && notes.lock().bytes == 0);
    }
}
