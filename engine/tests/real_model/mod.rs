//! Where the real model of the tests lies, for the tests of every crate that has some with it.

use std::path::PathBuf;

/// The real model's file, or `None` with a line that says how to get it.
pub(crate) fn real_model() -> Option<PathBuf> {
    let cached = || {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/strata/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    };
    let path = std::env::var_os("STRATA_TEST_MODEL").map(PathBuf::from).or_else(cached)?;
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is missing; run `make model`", path.display());
    None
}
