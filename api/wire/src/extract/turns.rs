//! The turns of a conversation: messages, or a response's items.

use std::ops::Range;

use super::content::{Content, Raw};
use super::hashing::{Around, Bytes, Name, RECORD, Text, UNIT, ValueReader};
use super::scan::Event;
use super::text::{Found, Level};
use crate::prefix::Mark;
use crate::rope::Spooled;

/// A list of turns. A response's input may be one text instead, which is the user's turn.
#[derive(Debug)]
pub(super) struct Turns {
    depth: usize,
    /// Whether they are a response's items.
    items: bool,
    text: Option<Text>,
    turn: Option<Box<Turn>>,
}

impl Turns {
    pub(super) fn new(depth: usize, items: bool) -> Self {
        Self { depth, items, text: None, turn: None }
    }
}

impl ValueReader for Turns {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        if let Some(turn) = &mut self.turn {
            if turn.event(depth, event, around) {
                self.turn = None;
            }
            return false;
        }
        match event {
            Event::Open { object: false, .. } if depth == self.depth => {}
            Event::Close { .. } => return true,
            Event::Open { at, object } if depth > self.depth && (object || !self.items) => {
                self.turn = Some(Box::new(Turn::begin(depth, at, object, self.items, around)));
            }
            Event::String { at, .. } if self.items && depth == self.depth => {
                around.push(b"user");
                around.push(UNIT);
                self.text = Some(Text::begin(at, around));
            }
            Event::Piece(_) | Event::Escape(_) => {}
            Event::StringEnd { end } => {
                if let Some(text) = self.text.take() {
                    text.end(end, around);
                    around.push(RECORD);
                    around.hashing.hasher.opened();
                }
                return true;
            }
            Event::Open { .. } | Event::String { .. } | Event::Scalar { .. } => around.breaks(),
        }
        false
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        if let Some(turn) = &mut self.turn {
            turn.chunk_over(around);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Role,
    Content,
    Calls,
    Other,
}

/// A member that enters the canonical text at a place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Absent,
    /// It has been hashed, or there is nothing of it to hash.
    Done,
    /// It came before what it follows, and is read again.
    Later(Range<usize>),
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Reading {
    Nothing,
    Key(Name),
    Role,
    Content(Content),
    Calls(Raw),
    /// A member that is read again, from here.
    Later(Member, usize),
    Other,
}

/// One turn: its role, its content, and the calls of tools in it, in this order whatever the body's.
#[derive(Debug)]
struct Turn {
    depth: usize,
    /// An item, which may turn out to have no role: the text before it, and its bytes.
    item: Option<(Mark, Bytes)>,
    /// Of a turn that is a list of its members' values: how many have come.
    values: Option<usize>,
    next: Member,
    reading: Reading,
    role: Option<Name>,
    content: Entry,
    calls: Entry,
}

impl Turn {
    fn begin<S: Spooled + ?Sized>(
        depth: usize,
        at: usize,
        object: bool,
        item: bool,
        around: &mut Around<'_, S>,
    ) -> Self {
        Self {
            depth,
            item: item.then(|| (around.hashing.hasher.mark(), Bytes::begin(at))),
            values: (!object).then_some(0),
            next: Member::Other,
            reading: Reading::Nothing,
            role: None,
            content: Entry::Absent,
            calls: Entry::Absent,
        }
    }

    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        let own = depth == self.depth + 1;
        match (event, &mut self.reading) {
            (Event::Close { end }, _) if depth == self.depth => {
                self.ends(end, around);
                return true;
            }
            (Event::String { key: true, .. }, Reading::Nothing) => {
                self.reading = Reading::Key(Name::default());
                around.name_begins();
            }
            (Event::Piece(_) | Event::Escape(_), Reading::Key(key)) => {
                around.decode_name(event, |text| key.push(text));
            }
            (Event::StringEnd { .. }, Reading::Key(key)) => {
                self.next = match key.get() {
                    b"role" => Member::Role,
                    b"content" => Member::Content,
                    b"tool_calls" => Member::Calls,
                    _ => Member::Other,
                };
                self.reading = Reading::Nothing;
                if around.string_ends() == Found::NoText {
                    around.breaks();
                }
            }
            (_, Reading::Nothing) => self.value_begins(depth, event, around),
            (_, Reading::Content(content)) => {
                if content.event(depth, event, around) {
                    self.reading = Reading::Nothing;
                }
            }
            (_, Reading::Calls(calls)) => {
                if calls.event(depth, event, around) {
                    self.reading = Reading::Nothing;
                }
            }
            (Event::Piece(_) | Event::Escape(_), Reading::Role) => {
                around.hash_name(event, self.role.get_or_insert_default());
            }
            (Event::StringEnd { .. }, Reading::Role) => {
                if around.string_ends() == Found::NoText {
                    around.breaks();
                }
                around.push(UNIT);
                self.reading = Reading::Nothing;
            }
            (Event::StringEnd { end } | Event::Close { end }, Reading::Later(member, from)) => {
                if own {
                    let entry = if *member == Member::Content { &mut self.content } else { &mut self.calls };
                    *entry = Entry::Later(*from..end);
                    self.reading = Reading::Nothing;
                }
            }
            (_, Reading::Later(..)) => {}
            (_, Reading::Other | Reading::Key(_) | Reading::Role) => {
                match event {
                    Event::String { .. } => around.string_begins(Level::Form),
                    Event::StringEnd { .. } => {
                        around.string_ends();
                    }
                    _ => {}
                }
                if own && matches!(event, Event::StringEnd { .. } | Event::Close { .. }) {
                    self.reading = Reading::Nothing;
                }
            }
        }
        false
    }

    /// A value begins; a scalar is over with it.
    fn value_begins<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) {
        if let Some(values) = &mut self.values {
            self.next =
                [Member::Role, Member::Content, Member::Calls].get(*values).copied().unwrap_or_else(|| {
                    around.breaks();
                    Member::Other
                });
            *values += 1;
        }
        let (at, scalar) = match event {
            Event::String { at, .. } | Event::Open { at, .. } => (at, None),
            Event::Scalar { at, end, null } => (at, Some((end, null))),
            _ => return,
        };
        let null = matches!(scalar, Some((_, true)));
        let role_is_in = self.role.is_some();
        let entry = match self.next {
            Member::Role => {
                if role_is_in || !matches!(event, Event::String { .. }) {
                    return around.breaks();
                }
                if let Some((mark, _)) = self.item.take() {
                    around.hashing.hasher.go_back(mark);
                }
                self.role = Some(Name::default());
                self.reading = Reading::Role;
                return around.name_begins();
            }
            Member::Other => {
                if scalar.is_none() {
                    self.reading = Reading::Other;
                    if matches!(event, Event::String { .. }) {
                        around.string_begins(Level::Form);
                    }
                }
                return;
            }
            Member::Content => &mut self.content,
            Member::Calls => &mut self.calls,
        };
        if *entry != Entry::Absent {
            return around.breaks();
        }
        *entry = Entry::Done;
        let in_order = role_is_in && (self.next == Member::Content || self.content == Entry::Done);
        if null {
        } else if !in_order {
            let member = self.next;
            match scalar {
                Some((end, _)) => *self.entry(member) = Entry::Later(at..end),
                None => self.reading = Reading::Later(member, at),
            }
        } else if self.next == Member::Content {
            let mut content = Content::new(depth);
            if !content.event(depth, event, around) {
                self.reading = Reading::Content(content);
            }
        } else {
            around.push(UNIT);
            let mut calls = Raw::new(depth);
            if !calls.event(depth, event, around) {
                self.reading = Reading::Calls(calls);
            }
        }
    }

    fn entry(&mut self, member: Member) -> &mut Entry {
        if member == Member::Content { &mut self.content } else { &mut self.calls }
    }

    fn ends<S: Spooled + ?Sized>(&mut self, end: usize, around: &mut Around<'_, S>) {
        let depth = self.depth + 1;
        if let Some((_, mut bytes)) = self.item.take() {
            bytes.up_to(end, around);
            around.push(RECORD);
            around.hashing.hasher.opened();
            return around.hashing.hasher.answered();
        }
        if self.role.is_none() {
            around.push(UNIT);
        }
        if let Entry::Later(content) = &self.content {
            around.read_again(content.clone(), depth, &mut Content::new(depth));
        }
        if let Entry::Later(calls) = &self.calls {
            around.push(UNIT);
            around.read_again(calls.clone(), depth, &mut Raw::new(depth));
        }
        around.push(RECORD);
        match self.role.unwrap_or_default().get() {
            b"system" | b"developer" => {}
            b"assistant" | b"tool" | b"function" => {
                around.hashing.hasher.opened();
                around.hashing.hasher.answered();
            }
            _ => around.hashing.hasher.opened(),
        }
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        if let Some((_, bytes)) = &mut self.item {
            bytes.up_to(around.end(), around);
        }
        match &mut self.reading {
            Reading::Content(content) => content.chunk_over(around),
            Reading::Calls(calls) => calls.chunk_over(around),
            _ => {}
        }
    }
}
