//! One of the schedulers that share the replicas: what it was told of them, what it has sent them, and what
//! it holds back. It knows nothing of what the others do but what replicas tell.

use std::sync::Arc;
use std::time::Duration;

use strata_scheduler::index::{BlockIndex, Told};
use strata_scheduler::queue::Queue;
use strata_scheduler::replica::Replica;
use strata_scheduler::telemetry::Reading;
use strata_wire::engine_events::{BlockChanges, EngineEvent, Snapshot};
use strata_wire::replicas::Endpoint;
use tokio::sync::Notify;

pub(crate) struct Scheduler {
    pub(crate) index: BlockIndex,
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) held: Queue<usize>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) turn: u64,
    told: Vec<Told>,
}

impl Scheduler {
    /// Before so many replicas, which tell it what they hold, or tell nothing.
    pub(crate) fn new(replicas: usize, is_told: bool) -> Self {
        let replica = |i| Arc::new(Replica::new(Endpoint::new(format!("r-{i}"), "http://127.0.0.1:1")));
        let mut scheduler = Self {
            index: BlockIndex::default(),
            replicas: (0..replicas).map(replica).collect(),
            held: Queue::default(),
            changed: Arc::default(),
            turn: 0,
            told: (0..replicas).map(|_| Told::default()).collect(),
        };
        for at in 0..if is_told { replicas } else { 0 } {
            let engine = scheduler.replicas[at].name().to_owned();
            let whole = Snapshot { engine, sequence: 0, first: true, last: true, stored: Vec::new() };
            scheduler.hears(at, EngineEvent::Snapshot(whole));
        }
        scheduler
    }

    /// A replica has told what changed.
    pub(crate) fn changed(&mut self, at: usize, changes: BlockChanges) {
        self.hears(at, EngineEvent::Blocks(changes));
    }

    fn hears(&mut self, at: usize, event: EngineEvent) {
        let taken = self.told[at].take(event, &self.index);
        assert!(taken.is_ok(), "a snapshot comes first, and changes in order");
        self.replicas[at].told(self.told[at].lane().cloned());
    }

    /// It looks at a replica's metrics.
    pub(crate) fn looks(&self, at: usize, reading: Reading, now: Duration) {
        let replica = &self.replicas[at];
        replica.scraped(reading, replica.own(), now);
    }
}
