//! Arbitrary objects of each kind through validation, planning, rendering and status: nothing panics, the
//! same input gives the same output, and no output is larger than its input warrants.
//!
//! `FUZZ_SECONDS` says for how long (a few objects without it), `FUZZ_SEED` where to begin. An input that fails is
//! made smaller, kept in `target/fuzz/`, and printed with its seed.
#![allow(clippy::unwrap_used)]

mod generate;
mod judge;
mod random;
mod shrink;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use strata_kinds::schema::Kind;

use self::random::Random;

/// Objects that every run of the tests looks at.
const A_FEW: u64 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether an object fails, and how.
fn failure(kind: Kind, object: &Value) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| judge::judge(kind, object))).map_or_else(
        |panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
        },
        Result::err,
    )
}

#[test]
fn arbitrary_objects() {
    let seconds = number("FUZZ_SECONDS");
    let seed = number("FUZZ_SEED").unwrap_or_else(|| match seconds {
        Some(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64,
        None => 1,
    });
    println!("fuzz: seed {seed}");
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(600));
    let most = seconds.map_or(A_FEW, |_| u64::MAX);
    // A panic is caught and told of once, smaller.
    std::panic::set_hook(Box::new(|_| ()));
    let (mut runs, mut accepted) = (0u64, 0u64);
    let mut failed = None;
    while failed.is_none() && runs < most && Instant::now() < until {
        let own = seed.wrapping_add(runs);
        let mut random = Random::new(own);
        let kind = Kind::ALL[random.below(3)];
        let object = generate::object(&mut random, kind);
        failed = failure(kind, &object).map(|_| (own, kind, object.clone()));
        accepted += u64::from(strata_kinds::validate::validate(kind, &object).is_empty());
        runs += 1;
    }
    let report = failed.map(|(own, kind, object)| {
        let small = shrink::shrink(&object, &|smaller| failure(kind, smaller).is_some());
        let why = failure(kind, &small).unwrap_or_default();
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{kind}-{own}.json"));
        std::fs::write(&path, serde_json::to_string_pretty(&small).unwrap()).unwrap();
        format!("seed {own}: {why}\n{small:#}\nkept in {}", path.display())
    });
    let _ = std::panic::take_hook();
    println!("fuzz: {runs} objects, {accepted} of them valid");
    assert!(report.is_none(), "{}", report.unwrap());
    assert!(accepted * 20 > runs, "{runs} objects, {accepted} valid: the generator is too wild");
}
