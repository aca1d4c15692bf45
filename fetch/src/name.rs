//! Names of files within a model. They come from servers, so each is judged before it becomes a path.

use std::collections::BTreeSet;

use crate::error::FetchError;

/// Begins the names that are ours alone.
pub(crate) const OURS: &str = ".strata";
const LONGEST_PART: usize = 255;
const LONGEST: usize = 1024;

/// The name itself when it is a relative path of plain parts.
pub(crate) fn checked(host: &str, name: &str) -> Result<String, FetchError> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > LONGEST || name.split('/').any(|part| part.len() > LONGEST_PART) {
        "it is too long"
    } else if name.starts_with('/') {
        "it is absolute"
    } else if name.split('/').any(|part| matches!(part, "." | ".." | "")) {
        "it has an empty part, `.` or `..`"
    } else if name.contains('\\') || name.chars().any(char::is_control) {
        "it has a backslash or a control character"
    } else if name.starts_with(OURS) {
        "such names are kept for Strata"
    } else {
        return Ok(name.to_owned());
    };
    Err(FetchError::BadName { host: host.to_owned(), name: name.to_owned(), problem })
}

/// Fails when two names are the same, or one would be a file and a folder at once.
pub(crate) fn distinct<'a>(host: &str, names: impl Iterator<Item = &'a str>) -> Result<(), FetchError> {
    let bad =
        |name: &str, problem| FetchError::BadName { host: host.to_owned(), name: name.to_owned(), problem };
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(bad(name, "it is there twice"));
        }
    }
    for name in &seen {
        let mut folders = name.match_indices('/').map(|(at, _)| &name[..at]);
        if let Some(folder) = folders.find(|folder| seen.contains(folder)) {
            return Err(bad(folder, "it is a file and a folder at once"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for good in ["config.json", "a/b.gguf", "..a", "a..", "ü.json", "a b"] {
            assert!(checked("h", good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "a\\b",
            "a\nb",
            ".strata-model.json",
            &long,
        ] {
            assert!(checked("h", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_clash() {
        assert!(distinct("h", ["a/b", "a/c", "ab"].into_iter()).is_ok());
        assert!(distinct("h", ["a", "a"].into_iter()).is_err());
        assert!(distinct("h", ["a/b/c", "a/b", "a/b-c"].into_iter()).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_stays_inside(name in any::<String>(), parts in "[./a\\\\]{0,8}") {
            for name in [name, parts] {
                if let Ok(name) = checked("h", &name) {
                    prop_assert!(Path::new(&name).components().all(|c| matches!(c, Component::Normal(_))));
                }
            }
        }
    }
}
