//! The members of a body that enter the canonical text, in its order.

use super::content::{Content, Raw, Whole};
use super::hashing::{Around, RECORD, UNIT, ValueReader};
use super::scan::Event;
use super::turns::Turns;
use crate::prefix::Form;
use crate::rope::Spooled;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Tools,
    Messages,
    Prompt,
    Instructions,
    Previous,
    Input,
}

/// The most fields that a form has.
pub(super) const FIELDS: usize = 4;

/// The fields of a form, after the model.
pub(super) fn fields(form: Form) -> &'static [(&'static str, Field)] {
    match form {
        Form::Chat => &[("tools", Field::Tools), ("messages", Field::Messages), ("prompt", Field::Prompt)],
        Form::Response => &[
            ("tools", Field::Tools),
            ("instructions", Field::Instructions),
            ("previous_response_id", Field::Previous),
            ("input", Field::Input),
        ],
    }
}

/// Hashes a field.
#[derive(Debug)]
pub(super) struct FieldReader {
    field: Field,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Raw(Raw),
    Whole(Whole),
    Content(Content),
    Turns(Turns),
}

impl FieldReader {
    /// A field begins, whose value stands at this depth.
    pub(super) fn new<S: Spooled + ?Sized>(field: Field, depth: usize, around: &mut Around<'_, S>) -> Self {
        let value = match field {
            Field::Tools | Field::Previous => Value::Raw(Raw::new(depth)),
            Field::Messages | Field::Input => Value::Turns(Turns::new(depth, field == Field::Input)),
            Field::Prompt => {
                // A prompt is one text that may go on from an earlier one: only its beginning tells.
                around.hashing.hasher.opens();
                Value::Whole(Whole::new(depth))
            }
            Field::Instructions => {
                around.push(b"system");
                around.push(UNIT);
                Value::Content(Content::new(depth))
            }
        };
        Self { field, value }
    }
}

impl ValueReader for FieldReader {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        let ended = match &mut self.value {
            Value::Raw(raw) => raw.event(depth, event, around),
            Value::Whole(whole) => whole.event(depth, event, around),
            Value::Content(content) => content.event(depth, event, around),
            Value::Turns(turns) => turns.event(depth, event, around),
        };
        if ended {
            match self.field {
                Field::Tools | Field::Previous | Field::Instructions => around.push(RECORD),
                Field::Prompt => around.hashing.hasher.has_opened(),
                Field::Messages | Field::Input => {}
            }
        }
        ended
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        match &mut self.value {
            Value::Raw(raw) => raw.chunk_over(around),
            Value::Whole(whole) => whole.chunk_over(around),
            Value::Content(content) => content.chunk_over(around),
            Value::Turns(turns) => turns.chunk_over(around),
        }
    }
}
