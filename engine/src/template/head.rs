//! Reads the beginning of a call's object, up to where its arguments begin.

/// What the beginning of an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A call of this function; its arguments, an object, begin at this byte.
    Call {
        /// The function.
        name: String,
        /// Where its arguments begin.
        at: usize,
    },
    /// It could still become one.
    Unfinished,
    /// Something else, or a call in another order.
    Other,
}

/// Reads `{"name": "…", "arguments": {`, with `parameters` for `arguments` and other members of text
/// before it.
pub(super) fn head(text: &str) -> Head {
    let mut reader = Reader { text, at: 0 };
    let mut name = None;
    match reader.sign('{') {
        Some(true) => {}
        Some(false) => return Head::Other,
        None => return Head::Unfinished,
    }
    loop {
        let Some(key) = reader.string() else { return reader.stuck() };
        match reader.sign(':') {
            Some(true) => {}
            Some(false) => return Head::Other,
            None => return Head::Unfinished,
        }
        if key == "arguments" || key == "parameters" {
            return match (reader.peek(), name) {
                (Some('{'), Some(name)) => Head::Call { name, at: reader.at },
                (None, Some(_)) => Head::Unfinished,
                _ => Head::Other,
            };
        }
        let Some(value) = reader.string() else { return reader.stuck() };
        if key == "name" {
            if name.is_some() || value.is_empty() {
                return Head::Other;
            }
            name = Some(value);
        }
        match reader.sign(',') {
            Some(true) => {}
            Some(false) => return Head::Other,
            None => return Head::Unfinished,
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// Whether this sign comes next; `None` when nothing does.
    fn sign(&mut self, wanted: char) -> Option<bool> {
        let found = self.peek()? == wanted;
        self.at += usize::from(found);
        Some(found)
    }

    /// A whole JSON string.
    fn string(&mut self) -> Option<String> {
        if self.peek()? != '"' {
            return None;
        }
        let mut escaped = false;
        let end = self.text[self.at + 1..].bytes().position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        })?;
        let end = self.at + 1 + end;
        let value = serde_json::from_str(&self.text[self.at..=end]).ok()?;
        self.at = end + 1;
        Some(value)
    }

    /// Why no string could be read here.
    fn stuck(&mut self) -> Head {
        match self.peek() {
            None => Head::Unfinished,
            Some('"') => {
                // Either it is not closed yet, or what is closed is no JSON string.
                let mut escaped = false;
                let closed = self.text[self.at + 1..].bytes().any(|byte| {
                    let closes = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    closes
                });
                if closed { Head::Other } else { Head::Unfinished }
            }
            Some(_) => Head::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_other_objects_as_early_as_possible() {
        let call = |name: &str, at| Head::Call { name: name.into(), at };
        assert_eq!(head("{\"name\": \"f\", \"arguments\": {"), call("f", 27));
        assert_eq!(head(" {\"type\":\"function\",\"name\":\"f\\\"\",\"parameters\":{}}"), call("f\"", 46));
        let whole = "{\"name\": \"f\", \"arguments\": ";
        for end in 0..whole.len() {
            assert_eq!(head(&whole[..end]), Head::Unfinished, "{}", &whole[..end]);
        }
        for other in [
            "[",
            "{1",
            "{\"a\": 1",
            "{\"name\": \"f\"}",
            "{\"arguments\": {",
            "{\"name\": \"f\", \"arguments\": [",
            "{\"name\": \"\", ",
        ] {
            assert_eq!(head(other), Head::Other, "{other}");
        }
    }
}
