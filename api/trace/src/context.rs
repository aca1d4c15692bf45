//! Which trace a span belongs to, as W3C's Trace Context writes it: <https://www.w3.org/TR/trace-context/>.

/// A trace's id; never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// A span's id; never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// A span as those that it calls know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether whoever made it records it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`; `None` when it is not one, and then a trace begins anew.
    pub fn parse(header: &str) -> Option<Self> {
        let bytes = header.as_bytes();
        let [version] = hex::<1>(bytes.get(..2)?)?;
        // A later version may have more behind the flags.
        let whole = match version {
            0 => bytes.len() == 55,
            0xff => false,
            _ => bytes.len() == 55 || bytes.get(55) == Some(&b'-'),
        };
        let parted = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if !whole || !parted {
            return None;
        }
        let (trace, span) = (hex(bytes.get(3..35)?)?, hex(bytes.get(36..52)?)?);
        let [flags] = hex::<1>(bytes.get(53..55)?)?;
        let made = trace != [0; 16] && span != [0; 8];
        made.then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled: flags & 1 == 1 })
    }

    /// The `traceparent` for what this span calls.
    pub fn header(&self) -> String {
        let mut text = String::from("00-");
        let mut write = |bytes: &[u8]| {
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
                }
            }
            text.push('-');
        };
        write(&self.trace.0);
        write(&self.span.0);
        text.push_str(if self.sampled { "01" } else { "00" });
        text
    }
}

impl TraceId {
    /// A new one; `None` where the system gives no random numbers.
    pub fn random() -> Option<Self> {
        random().map(Self)
    }
}

impl SpanId {
    /// A new one; `None` where the system gives no random numbers.
    pub fn random() -> Option<Self> {
        random().map(Self)
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        getrandom::fill(&mut bytes).ok()?;
    }
    Some(bytes)
}

/// Bytes from lower-case hexadecimal digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_the_standard_allows_is_a_parent() {
        let read = TraceContext::parse(EXAMPLE).unwrap();
        assert_eq!((read.header().as_str(), read.sampled), (EXAMPLE, true));
        let with = |from: &str, to: &str| TraceContext::parse(&EXAMPLE.replacen(from, to, 1));
        assert!(!with("-01", "-00").unwrap().sampled);
        assert!(with("-01", "-03").unwrap().sampled, "other flags say nothing of it");
        assert!(with("00-", "01-").is_some() && with("00-", "ff-").is_none());
        assert!(TraceContext::parse(&EXAMPLE.replacen("00-", "cc-", 1).replace("-01", "-01-more")).is_some());
        for wrong in
            ["", "00", "00-1-2-01", &format!("{EXAMPLE}-more"), &EXAMPLE.to_uppercase(), &EXAMPLE[1..]]
        {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
        assert_eq!(with("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), None);
        assert_eq!(with("b7ad6b7169203331", &"0".repeat(16)), None);
        assert_eq!(with("b7ad6b", "b7ad6x"), None);
    }

    proptest! {
        #[test]
        fn a_header_comes_back_and_no_text_panics(trace: [u8; 16], span: [u8; 8], sampled: bool, text in ".{0,70}") {
            let context = TraceContext { trace: TraceId(trace), span: SpanId(span), sampled };
            let made = trace != [0; 16] && span != [0; 8];
            prop_assert_eq!(TraceContext::parse(&context.header()), made.then_some(context));
            let _ = TraceContext::parse(&text);
        }
    }
}
