//! Spans as OTLP's protobuf, `opentelemetry/proto/collector/trace/v1`: the few messages that are used,
//! by their field numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::span::{Span, Status, Value};

/// Flags of a span: those of W3C in the low byte, then whether it is known that its parent is remote,
/// and whether it is.
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// A message in the making.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u32, kind: u8) {
        self.varint(u64::from(field << 3 | u32::from(kind)));
    }

    fn number(&mut self, field: u32, value: u64) {
        self.tag(field, VARINT);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u32, value: u64) {
        self.tag(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, value: u32) {
        self.tag(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn attribute(&mut self, field: u32, name: &str, value: &Value) {
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, |any| any.value(value));
        });
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.bytes(1, text.as_bytes()),
            Value::Int(number) => self.number(3, *number as u64),
            Value::Float(number) => self.fixed64(4, number.to_bits()),
            Value::Texts(texts) => self.message(5, |array| {
                for text in texts {
                    array.message(1, |any| any.bytes(1, text.as_bytes()));
                }
            }),
        }
    }

    fn span(&mut self, span: &Span) {
        self.bytes(1, &span.context.trace.0);
        self.bytes(2, &span.context.span.0);
        let mut flags = HAS_IS_REMOTE | if span.context.sampled { SAMPLED } else { 0 };
        if let Some(parent) = span.parent {
            self.bytes(4, &parent.0);
            flags |= IS_REMOTE;
        }
        self.bytes(5, span.name.as_bytes());
        self.number(6, span.kind as u64);
        self.fixed64(7, nanoseconds(span.start));
        self.fixed64(8, nanoseconds(span.end));
        for (name, value) in &span.attributes {
            self.attribute(9, name, value);
        }
        // What is as it is by default is left out.
        if span.status != Status::Unset {
            self.message(15, |status| status.number(3, span.status as u64));
        }
        self.fixed32(16, flags);
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// `ExportTraceServiceRequest`: these spans of one process.
pub(crate) fn request(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |message| {
            for (name, value) in resource {
                message.attribute(1, name, &Value::Text(value.clone()));
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.bytes(1, b"strata");
                scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            for span in spans {
                of_scope.message(2, |message| message.span(span));
            }
        });
    });
    request.0
}

/// How many spans an `ExportTraceServiceResponse` says were not taken; 0 when it says nothing of it.
pub(crate) fn rejected(response: &[u8]) -> u64 {
    let partial = fields(response).find_map(|(field, value)| match value {
        Field::Bytes(bytes) if field == 1 => Some(bytes),
        _ => None,
    });
    let number = |(field, value)| match value {
        Field::Number(number) if field == 1 => Some(number),
        _ => None,
    };
    fields(partial.unwrap_or_default()).find_map(number).unwrap_or(0)
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to the first that cannot be read.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut rest)?;
            let field = tag >> 3;
            match (tag & 7) as u8 {
                VARINT => return Some((field, Field::Number(varint(&mut rest)?))),
                BYTES => {
                    let size = usize::try_from(varint(&mut rest)?).ok()?;
                    return Some((field, Field::Bytes(rest.split_off(..size)?)));
                }
                FIXED64 => drop(rest.split_off(..8)?),
                FIXED32 => drop(rest.split_off(..4)?),
                _ => return None,
            }
        }
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_partial_success_is_read() {
        let mut response = Message::default();
        response.message(1, |partial| {
            partial.bytes(2, b"too old");
            partial.number(1, 300);
        });
        assert_eq!(rejected(&response.0), 300);
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(b"<html>"), 0);
    }

    proptest! {
        #[test]
        fn no_response_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = rejected(&bytes);
        }

        #[test]
        fn numbers_come_back(number: u64) {
            let mut message = Message::default();
            message.varint(number);
            prop_assert_eq!(varint(&mut message.0.as_slice()), Some(number));
        }
    }
}
