//! Whatever the body and however it is cut: what is read of it is what the first readers read.

use proptest::prelude::*;
use strata_wire::extract::Extractor;
use strata_wire::prefix::{self, Form, Prefix};
use strata_wire::rope::Spooled;
use strata_wire::toplevel::{ScanError, TopLevel};

use super::{bodies, reference};

/// Reads a body that comes in chunks.
pub(crate) fn read(
    body: &[u8],
    form: Form,
    ahead: bool,
    mut cut: impl FnMut(usize) -> usize,
) -> Result<(TopLevel, Option<Prefix>), ScanError> {
    let mut extractor = Extractor::new(None, Some((form, "scope"))).ahead(ahead);
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
        extractor.push(chunk)?;
        rest = after;
    }
    let extracted = extractor.finish()?;
    let bytes: Vec<u8> = extracted.body.slices(0..extracted.body.len()).flatten().copied().collect();
    assert_eq!(bytes, body);
    Ok((extracted.top, extracted.prefix))
}

/// Looks at a body by all the readers. Returns whether it has a prefix.
pub(crate) fn judge(body: &[u8], cuts: &[usize]) -> Result<bool, String> {
    let same = |what: &str, is: bool| if is { Ok(()) } else { Err(format!("{what} differs")) };
    let (old, new) = (reference::scan(body), TopLevel::scan(body));
    same(&format!("the top level: {old:?} and {new:?}"), old == new)?;
    // What is nested deeper, or is no object, the top level refuses before its prefix is asked for.
    let refused = matches!(old, Err(ScanError::TooDeep { .. } | ScanError::NotAnObject { .. }));
    let wanted = reference::with_passages("scope", body);
    if !refused {
        same("the prefix", prefix::with_passages("scope", body) == wanted)?;
        same("the prefix alone", prefix::of_body("scope", body) == wanted.as_ref().map(|(p, _)| p.clone()))?;
    }
    let prefix = wanted.map(|(prefix, _)| prefix);
    let at = std::cell::Cell::new(0);
    let by_cuts = |_| {
        at.set(at.get() + 1);
        cuts.get((at.get() - 1) % cuts.len().max(1)).copied().unwrap_or(usize::MAX)
    };
    let readings = [
        read(body, Form::Chat, true, |_| 1),
        read(body, Form::Chat, false, |_| 1),
        read(body, Form::Chat, true, by_cuts),
    ];
    for pushed in readings {
        match (&pushed, &old) {
            (Ok((top, got)), Ok(wanted)) => {
                same("the top level in chunks", top == wanted)?;
                same("the prefix in chunks", *got == prefix)?;
            }
            (pushed, old) => {
                same("the error in chunks", pushed.as_ref().err() == old.as_ref().err())?;
            }
        }
    }
    Ok(prefix.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn bodies_of_the_right_shape(body in bodies::chat(), cuts in prop::collection::vec(1usize..300, 1..4)) {
        judge(&body, &cuts).map_err(|why| TestCaseError::fail(format!("{why}: {}", String::from_utf8_lossy(&body))))?;
    }

    #[test]
    fn damaged_bodies(body in bodies::damaged(), cuts in prop::collection::vec(1usize..300, 1..4)) {
        judge(&body, &cuts).map_err(|why| TestCaseError::fail(format!("{why}: {}", String::from_utf8_lossy(&body))))?;
    }

    /// However a response is cut, it is read the same.
    #[test]
    fn responses(body in bodies::response(), cut in 1usize..300) {
        let whole = read(&body, Form::Response, false, |_| usize::MAX);
        prop_assert_eq!(&whole, &read(&body, Form::Response, true, |_| 1));
        prop_assert_eq!(&whole, &read(&body, Form::Response, true, |_| cut));
    }
}

/// The properties above are about something: most bodies of the right shape have a prefix.
#[test]
fn many_of_the_bodies_are_taken() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let taken = (0..400).filter(|_| {
        let body = bodies::chat().new_tree(&mut runner).unwrap().current();
        reference::with_passages("scope", &body).is_some_and(|(prefix, _)| prefix.bytes > 0)
    });
    let taken = taken.count();
    assert!(taken > 100, "{taken} of 400");
}
