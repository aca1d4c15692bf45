//! Reads a request's body while it comes: its top level, and its canonical prefix.
//!
//! Nothing is built of the body. A machine ([`scan`]) tells where values begin and end; what listens to it
//! keeps places, and hashes text as it passes. The bytes are kept as they came ([`crate::rope`]), to be
//! passed on, and to read a value again that came before something that it follows.

pub(crate) mod canonical;
mod content;
mod field;
mod hashing;
pub(crate) mod json_text;
pub(crate) mod members;
mod scalar;
pub(crate) mod scan;
mod text;
mod turns;

use std::borrow::Cow;

use self::canonical::Canonical;
use self::members::Members;
use self::scan::{Event, Scanner, Sink};
use crate::error::ErrorBody;
use crate::prefix::{Form, Prefix};
use crate::rope::{Rope, Spool};
use crate::toplevel::{ScanError, TopLevel, as_text};

/// Longest scalar that is told from others.
const MAX_SCALAR: usize = 32;

/// Reads one body.
#[derive(Debug)]
pub struct Extractor {
    spool: Spool,
    scanner: Scanner,
    members: Members,
    canonical: Option<Canonical>,
}

/// A body that was read.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// Its bytes.
    pub body: Rope,
    /// Where its members lie.
    pub top: TopLevel,
    /// Its canonical prefix, if it was asked for and the body has one.
    pub prefix: Option<Prefix>,
    /// Whether something that stands before the messages in the canonical text followed them in the body.
    /// `None` when that could make no difference.
    pub came_late: Option<bool>,
}

impl Extractor {
    /// For a body of this length, if it is known. `prompt` is what its prompt is looked for by, and the
    /// cache scope; without it the prefix is not computed.
    pub fn new(expected: Option<usize>, prompt: Option<(Form, &str)>) -> Self {
        Self {
            spool: Spool::new(expected),
            scanner: Scanner::new(),
            members: Members::new(),
            canonical: prompt.map(|(form, scope)| Canonical::new(form, scope)),
        }
    }

    /// The same, which hashes messages as they come though tools may follow them: sooner done where none
    /// do, and twice the work where they do.
    #[must_use]
    pub fn ahead(mut self, ahead: bool) -> Self {
        self.canonical = self.canonical.map(|canonical| canonical.ahead(ahead));
        self
    }

    /// Bytes read so far.
    pub fn len(&self) -> usize {
        self.spool.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.spool.is_empty()
    }

    /// Takes what came next. After an error the body is of no use.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ScanError> {
        let base = self.spool.len();
        self.spool.push(chunk);
        let Some(canonical) = &mut self.canonical else {
            return self.scanner.push(chunk, &mut self.members);
        };
        let mut both = Both(&mut self.members, canonical.sink(&self.spool, chunk, base));
        self.scanner.push(chunk, &mut both)?;
        both.1.chunk_over();
        Ok(())
    }

    /// The body has ended.
    pub fn finish(mut self) -> Result<Extracted, ScanError> {
        self.scanner.finish(&mut self.members)?;
        let body = self.spool.finish();
        let came_late = self.canonical.as_ref().and_then(Canonical::came_late);
        let prefix = self.canonical.and_then(|canonical| canonical.finish(&body));
        let prefix = prefix.map(|(prefix, _)| prefix);
        Ok(Extracted { top: self.members.finish(), prefix, came_late, body })
    }
}

impl Extracted {
    /// The raw value of a member.
    pub fn raw(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        self.top.get(key).map(|member| self.body.joined(member.value_at.clone()))
    }

    /// The value of a member that says something in a word: a number, `true`, `false`, `null`. Of a longer
    /// one its first bytes, which are none of these.
    pub fn scalar(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        let at = self.top.get(key)?.value_at.clone();
        Some(self.body.joined(at.start..at.end.min(at.start + MAX_SCALAR)))
    }

    /// The value of a member as text. `None` when absent or null; an error when it is something else.
    pub fn text(&self, key: &str) -> Result<Option<String>, ErrorBody> {
        as_text(key, self.raw(key).as_deref())
    }
}

/// Two that listen.
struct Both<'a, B>(&'a mut Members, B);

impl<B: Sink> Sink for Both<'_, B> {
    fn event(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError> {
        self.0.event(depth, event)?;
        self.1.event(depth, event)
    }

    #[inline]
    fn text(&mut self, text: &[u8]) -> usize {
        // The first looks at keys alone.
        self.1.text(text)
    }
}
