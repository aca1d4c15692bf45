//! Bodies damaged again and again, each through every reader: nothing panics, and all say the same.
//!
//! `FUZZ_SECONDS` says for how long (a few without it), `FUZZ_SEED` where to begin.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{bodies, same};

/// Bodies that every run of the tests looks at.
const A_FEW: u64 = 300;
/// Longest time that one body may take, on a machine that does other things as well.
const LONGEST: Duration = Duration::from_secs(20);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn arbitrary_bodies() {
    let seconds = number("FUZZ_SECONDS");
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
    let (mut runs, mut taken) = (0u64, 0u64);
    while runs < seconds.map_or(A_FEW, |_| u64::MAX) && Instant::now() < until {
        let own = seed.wrapping_add(runs);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&own.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let cuts = proptest::collection::vec(1usize..2000, 1..6).new_tree(&mut runner).unwrap().current();
        let body = if own % 3 == 0 {
            bodies::chat().new_tree(&mut runner).unwrap().current()
        } else {
            bodies::damaged().new_tree(&mut runner).unwrap().current()
        };
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| same::judge(&body, &cuts)));
        let why = match outcome {
            Ok(Ok(is_taken)) if begun.elapsed() <= LONGEST => {
                taken += u64::from(is_taken);
                runs += 1;
                continue;
            }
            Ok(Ok(_)) => "took too long".to_owned(),
            Ok(Err(why)) => why,
            Err(_) => "panicked".to_owned(),
        };
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("body-{own}"));
        std::fs::write(&path, &body).unwrap();
        panic!("seed {own}: {why}; kept in {}", path.display());
    }
    println!("fuzz bodies: {runs}, {taken} of them with a prefix");
    assert!(taken * 10 > runs, "{runs} bodies, {taken} with a prefix: the generator is too wild");
}
