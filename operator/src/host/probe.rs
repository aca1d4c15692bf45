//! Asks a process whether it has started, serves and lives.

use std::time::Duration;

use http::Request;
use strata_hop::{Body, Upstream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::container::{HttpProbe, Recipe};

/// How often a process is asked that does not serve yet: a user waits for it.
const EAGER: Duration = Duration::from_millis(25);

/// What the probes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// It answered once.
    pub started: bool,
    /// It serves.
    pub ready: bool,
    /// It must be started again.
    pub dead: bool,
}

/// Asks until the receiver of `told` is gone.
pub(super) async fn watch(base: String, recipe: Recipe, client: Upstream, told: watch::Sender<Health>) {
    let mut health = Health::default();
    if let Some(startup) = &recipe.startup {
        let deadline = Instant::now() + startup.period * startup.failures;
        while !succeeds(&client, &base, startup).await {
            if Instant::now() >= deadline {
                health.dead = true;
                let _ = told.send(health);
                return;
            }
            tokio::time::sleep(EAGER).await;
        }
    }
    health.started = true;
    let (mut unready, mut unwell) = (0, 0);
    let mut next_liveness = Instant::now() + recipe.liveness.as_ref().map_or(Duration::MAX / 4, |l| l.period);
    loop {
        match &recipe.readiness {
            None => health.ready = true,
            Some(readiness) if succeeds(&client, &base, readiness).await => {
                unready = 0;
                health.ready = true;
            }
            Some(readiness) => {
                unready += 1;
                health.ready &= unready < readiness.failures;
            }
        }
        if let Some(liveness) = recipe.liveness.as_ref().filter(|_| Instant::now() >= next_liveness) {
            unwell = if succeeds(&client, &base, liveness).await { 0 } else { unwell + 1 };
            health.dead = unwell >= liveness.failures;
            next_liveness = Instant::now() + liveness.period;
        }
        if told.send(health).is_err() || health.dead {
            return;
        }
        let period = recipe.readiness.as_ref().map_or(Duration::from_secs(1), |r| r.period);
        tokio::time::sleep(if health.ready { period } else { EAGER }).await;
    }
}

async fn succeeds(client: &Upstream, base: &str, probe: &HttpProbe) -> bool {
    let Ok(request) = Request::get(format!("{base}{}", probe.path)).body(Body::empty()) else { return false };
    client.send(request, probe.timeout).await.is_ok_and(|response| response.status().is_success())
}
