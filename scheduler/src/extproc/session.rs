//! Runs one exchange: reads what the proxy sends, looks for the replica, watches the clock, and holds
//! the request's place in the books until the stream ends.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use http::StatusCode;
use strata_hop::Fault;
use strata_wire::{ErrorKind, defaults};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::answer::Reply;
use super::exchange::{Action, Exchange};
use super::place::{Placed, place};
use super::proto::{ProcessingRequest, ProcessingResponse};
use crate::proxy::{failed, is_failure};
use crate::replica::Verdict;
use crate::scheduler::Scheduler;

type Placing = Pin<Box<dyn Future<Output = Result<Box<Placed>, Reply>> + Send>>;

/// One stream. Dropping it, as happens when the proxy or its client leaves, gives back what it holds.
pub(crate) struct Session {
    scheduler: Scheduler,
    from: Streaming<ProcessingRequest>,
    exchange: Exchange,
    to_say: VecDeque<ProcessingResponse>,
    placing: Option<Placing>,
    placed: Option<Box<Placed>>,
    end: Option<Result<(), &'static str>>,
    arrived: Instant,
    /// When the proxy last sent something.
    heard: Instant,
    /// When the stream must have ended.
    deadline: Instant,
}

/// What a session waits for.
enum Event {
    Message(Result<Option<ProcessingRequest>, Status>),
    Placed(Result<Box<Placed>, Reply>),
    Late,
}

impl Session {
    pub(crate) fn new(scheduler: Scheduler, from: Streaming<ProcessingRequest>) -> Self {
        let now = Instant::now();
        Self {
            scheduler,
            from,
            exchange: Exchange::new(),
            to_say: VecDeque::new(),
            placing: None,
            placed: None,
            end: None,
            arrived: now,
            heard: now,
            deadline: now + defaults::STREAM_TIMEOUT,
        }
    }

    /// The next message for the proxy; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Result<ProcessingResponse, Status>> {
        loop {
            if let Some(message) = self.to_say.pop_front() {
                return Some(Ok(message));
            }
            if let Some(end) = self.end {
                self.end = Some(Ok(()));
                (self.placing, self.placed) = (None, None);
                return end.err().map(|why| {
                    tracing::warn!(why, "a proxy does not keep to the endpoint-picker protocol");
                    Err(Status::invalid_argument(why))
                });
            }
            match self.event().await {
                Event::Message(Ok(Some(message))) => {
                    self.heard = Instant::now();
                    let actions = self.exchange.on(message);
                    self.act(actions);
                }
                Event::Message(Err(status)) => {
                    tracing::debug!(%status, "a proxy's stream broke off");
                    self.end = Some(Ok(()));
                }
                Event::Placed(outcome) => {
                    self.placing = None;
                    let outcome = outcome.map(|mut placed| {
                        self.deadline = placed.deadline;
                        let chosen = std::mem::take(&mut placed.chosen);
                        self.placed = Some(placed);
                        chosen
                    });
                    let actions = self.exchange.resolved(outcome);
                    self.act(actions);
                }
                Event::Late if self.exchange.is_reading() => {
                    let what =
                        format!("no more of the request came for {} s", self.heard.elapsed().as_secs());
                    let actions = self.exchange.refuse(&Fault::new(ErrorKind::RequestTimeout, what));
                    self.act(actions);
                }
                // The request is over or its client has left, or it has lasted too long.
                Event::Message(Ok(None)) | Event::Late => {
                    self.ended();
                    self.end = Some(Ok(()));
                }
            }
        }
    }

    async fn event(&mut self) -> Event {
        let reading = self.exchange.is_reading();
        let patience = (self.heard + defaults::IDLE_TIMEOUT).min(self.arrived + defaults::BODY_READ_TIMEOUT);
        let until = if reading { patience } else { self.deadline };
        let placing = self.placing.as_mut();
        let is_placing = placing.is_some();
        let placed = async {
            match placing {
                Some(placing) => placing.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = placed, if is_placing => Event::Placed(outcome),
            message = self.from.message() => Event::Message(message),
            // The choice has its own deadline, and an answer for it.
            () = tokio::time::sleep_until(until), if !is_placing => Event::Late,
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Say(message) => self.to_say.push_back(message),
                Action::Place(asked) => {
                    let (scheduler, arrived) = (self.scheduler.clone(), self.arrived);
                    self.placing = Some(Box::pin(async move { place(&scheduler, *asked, arrived).await }));
                }
                Action::Begun(status) => self.begun(status),
                Action::Finished => self.ended(),
                Action::End(how) => self.end = Some(how),
            }
        }
    }

    /// The request is over, as far as the proxy tells.
    fn ended(&mut self) {
        if let Some(mut placed) = self.placed.take() {
            placed.running.trace.over(None);
        }
    }

    /// The response has begun: the prompt is done, or the replica has refused it.
    fn begun(&mut self, status: u16) {
        let Some(placed) = &mut self.placed else {
            return;
        };
        let answered = (200..300).contains(&status).then(|| self.scheduler.now());
        placed.lease.begun(answered);
        if let Some(mut prompt) = placed.prompt.take() {
            prompt.begun(answered);
        }
        if let Ok(status) = StatusCode::from_u16(status) {
            placed.running.trace.answered(status, &placed.lease);
            if is_failure(status) {
                failed(&self.scheduler, &placed.lease, "a proxy got an error from it");
            } else if status.is_success() {
                placed.lease.says(Verdict::Worked, self.scheduler.now());
            }
        }
        if status >= 400 {
            self.scheduler.metrics.failed(&placed.model, status);
        }
        let replica = &placed.lease.replica;
        // It drains, or the proxy did not reach it. One that is well is back with its next scrape.
        if status == 503 && replica.failed("a proxy got 503 for a request to it", placed.lease.epoch) {
            tracing::warn!(replica = replica.name(), "replica is not ready: a proxy got 503");
        }
    }
}
