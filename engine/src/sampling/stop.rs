//! Stop texts, found in a stream of text pieces wherever the pieces are cut.

/// What became of a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is now certain to be returned.
    pub text: String,
    /// The stop text that was found, if one was; what follows it is dropped.
    pub stop: Option<String>,
}

/// Looks for the first stop text, and holds back text that could be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher of these texts; empty ones never match.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stops.is_empty() {
            return Stopped { text: text.to_owned(), stop: None };
        }
        self.held.push_str(text);
        // The stop text that is whole first wins, the longer one of two: so the cuts do not matter.
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s).map(|at| (at, s)))
            .min_by_key(|(at, s)| (at + s.len(), *at));
        if let Some((at, stop)) = found {
            let stop = stop.clone();
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Stopped { text, stop: Some(stop) };
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Stopped { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text held back, once no more can come.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`, and not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = (stop.len() - 1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&n| {
            text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n] && text.is_char_boundary(text.len() - n)
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()));
        let mut all = String::new();
        for piece in pieces {
            let got = matcher.push(piece);
            all.push_str(&got.text);
            if got.stop.is_some() {
                return (all, got.stop);
            }
        }
        all.push_str(&matcher.flush());
        (all, None)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_a_false_start_is_returned() {
        assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), ("a".into(), Some("\n\n".into())));
        assert_eq!(run(&["STOP"], &["xST", "OOPS", " ST"]), ("xSTOOPS ST".into(), None));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some("é!".into())));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".into(), Some("ab".into())), "the longer of two");
        assert_eq!(run(&["abc", "b"], &["abc"]), ("a".into(), Some("b".into())), "the first to be whole");
        assert_eq!(
            run(&["aab"], &["aa", "ab"]),
            ("a".into(), Some("aab".into())),
            "a restart inside a start"
        );
    }

    proptest! {
        /// However the text is cut, the result is that of the whole text.
        #[test]
        fn cuts_do_not_matter(text in "[abé]{0,24}", stops in proptest::collection::vec("[abé]{1,4}", 0..3), cuts in proptest::collection::vec(1usize..4, 0..24)) {
            let chars: Vec<char> = text.chars().collect();
            let (mut at, mut pieces) = (0, Vec::new());
            for cut in cuts.into_iter().chain(std::iter::repeat(2)) {
                if at >= chars.len() { break; }
                let end = (at + cut).min(chars.len());
                pieces.push(chars[at..end].iter().collect::<String>());
                at = end;
            }
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &pieces), run(&stops, &[text.as_str()]));
        }
    }
}
