//! Why a request gets no replica, as its client is told.

use std::time::Duration;

use strata_hop::Fault;
use strata_wire::ErrorKind;

use crate::registry::Pool;

/// When a client should try again after there was no replica.
const RETRY_NOT_READY: Duration = Duration::from_secs(1);
/// The same, after a model did not wake in time.
const RETRY_STARTING: Duration = Duration::from_secs(5);

/// Why a request leaves the queue without a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait.
    Full,
    /// Too many wait, and another had more right to its place.
    Displaced,
    /// Its priority is below zero, and replicas are full.
    Shed,
    /// It has waited for as long as it may.
    TooLong,
}

impl Refused {
    /// As a label of metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Displaced => "displaced",
            Self::Shed => "shed",
            Self::TooLong => "too_long",
        }
    }

    fn because(self) -> &'static str {
        match self {
            Self::Full => "too many requests wait",
            Self::Displaced => {
                "too many requests wait: one of higher priority, or of a client that has fewer, took this one's place"
            }
            Self::Shed => "requests of a priority below zero are not held while others wait, or for long",
            Self::TooLong => "waited too long",
        }
    }

    /// What the client gets, by why the replicas could not take its request.
    pub fn fault(self, pool: &Pool, priority: i32, now: Duration) -> Fault {
        if pool.is_asleep() {
            starting(&pool.name, if self == Self::TooLong { "did not start in time" } else { self.because() })
        } else if pool.is_full() || (self == Self::TooLong && pool.was_full()) {
            all_full(&pool.name, self.because()).retry_after(pool.queue().retry_after(priority, now))
        } else {
            none_ready(pool)
        }
    }
}

/// 429: there are replicas, and each has all that it can take. Told apart from a tenant's own rate
/// limit by its code.
fn all_full(model: &str, why: &str) -> Fault {
    let message = format!("every replica of `{model}` is busy and {why}; try again shortly");
    let mut fault = Fault::new(ErrorKind::RateLimitExceeded, message);
    fault.body.error.code = Some("capacity_exceeded".to_owned());
    fault
}

/// 503: there is no replica that could take it. Which are not and what is wrong with each is in
/// `GET /replicas`, for those who may know.
fn none_ready(pool: &Pool) -> Fault {
    let replicas = pool.replicas.load();
    let mut counts =
        [(0, "not yet up"), (0, "no longer answering"), (0, "ready, but had failed this request")];
    for replica in replicas.iter() {
        counts[usize::from(replica.was_ready()) + usize::from(replica.is_ready())].0 += 1;
    }
    let counted = counts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = counted.map(|(count, what)| format!("{count} {what}")).collect();
    let (of, why) = (replicas.len(), parts.join(", "));
    let message = format!("no replica of `{}` is ready (of {of}: {why}); try again shortly", pool.name);
    Fault::new(ErrorKind::Overloaded, message).retry_after(RETRY_NOT_READY)
}

/// 503: nothing of it runs, and it may soon.
fn starting(model: &str, what: &str) -> Fault {
    let message =
        format!("the model `{model}` is asleep or starting and {what}; it is being woken, try again shortly");
    let mut fault = Fault::new(ErrorKind::Overloaded, message).retry_after(RETRY_STARTING);
    fault.body.error.code = Some("model_starting".to_owned());
    fault
}

/// 504: the time that the request was given is over.
pub fn past_deadline() -> Fault {
    Fault::new(ErrorKind::Timeout, "the request's deadline passed before an answer began")
}

/// 404: nobody serves it.
pub fn unknown_model(model: &str) -> Fault {
    let shown: String = model.chars().take(200).collect();
    Fault::new(
        ErrorKind::ModelNotFound,
        format!("the model `{shown}` does not exist; GET /v1/models lists those that do"),
    )
    .param("model")
}
