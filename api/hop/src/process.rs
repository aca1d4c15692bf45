//! What every Strata process does alike: logs to stderr, and a clean stop on SIGINT or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Logs to stderr at `info`, or as `STRATA_LOG` says (`debug`, `strata_gateway=trace`); as JSON lines
/// when `STRATA_LOG_FORMAT` is `json`. A line that cannot be written (a full disk, a closed terminal) is
/// lost and nothing else is. A second call changes nothing.
///
/// The Kubernetes client says nothing but errors, whatever is asked for: below that it logs whole
/// answers that it cannot read, Secrets among them.
pub fn init_logs() {
    let mut filter = EnvFilter::try_from_env("STRATA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    if let Ok(quiet) = "kube_client::client=error".parse() {
        filter = filter.add_directive(quiet);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Told of on the same stderr, by a macro that panics when that fails.
        .log_internal_errors(false);
    let json = std::env::var("STRATA_LOG_FORMAT").is_ok_and(|f| f == "json");
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
}

/// A token that is cancelled by the first SIGINT, SIGTERM or SIGHUP (its terminal is gone).
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    /// Runs in a process of its own, whose stderr takes nothing, when the test below starts it.
    #[test]
    fn logs_where_nothing_can_be_written() {
        if std::env::var_os("STRATA_TEST_FULL").is_some() {
            super::init_logs();
            tracing::error!("lost");
        }
    }

    #[test]
    fn a_log_on_a_full_disk_costs_nothing_else() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::logs_where_nothing_can_be_written", "--nocapture"])
            .env("STRATA_TEST_FULL", "1")
            .stdout(Stdio::null())
            .stderr(full)
            .status()
            .unwrap();
        assert!(ended.success(), "{ended}");
    }
}
