//! No process outlives the `strata up` that started it, however that ends.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// The environment variable that names the process which must outlive this one.
pub(super) const PARENT_ENV: &str = "STRATA_PARENT";

/// Makes the system kill this process when the `strata up` that started it is gone. A component calls
/// it first of all; it does nothing in a process that `strata up` did not start.
pub fn die_with_parent() {
    let Some(parent) = std::env::var(PARENT_ENV).ok().and_then(|p| p.parse::<i32>().ok()) else { return };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "cannot be tied to the process that started this one");
    }
    // It may have gone before the call.
    if getppid().as_raw() != parent {
        std::process::exit(1);
    }
}
