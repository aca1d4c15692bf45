//! The adapters that the backend has, and who runs with them: one that is served no longer stays until
//! its last request has ended.

use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::{Backend, BackendError};
use crate::lora::{Adapter, AdapterId};

#[derive(Debug, Default)]
pub(super) struct LoadedAdapters {
    held: HashMap<AdapterId, Held>,
}

#[derive(Debug)]
struct Held {
    adapter: Arc<Adapter>,
    /// Requests that run with it.
    requests: usize,
    /// Whether new requests may ask for it.
    served: bool,
}

impl LoadedAdapters {
    /// Gives the backend an adapter that is to be served.
    pub(super) fn load(
        &mut self,
        adapter: &Arc<Adapter>,
        backend: &mut dyn Backend,
    ) -> Result<(), BackendError> {
        self.hold(adapter, backend).map(|held| held.served = true)
    }

    /// Notes that an adapter is served no longer.
    pub(super) fn retire(&mut self, id: AdapterId, backend: &mut dyn Backend) {
        if let Some(held) = self.held.get_mut(&id) {
            held.served = false;
        }
        self.sweep(id, backend);
    }

    /// Notes a new request. Returns whether its adapter is still served: it may have been unloaded while
    /// the request was on its way, and is there for it all the same.
    pub(super) fn enter(
        &mut self,
        adapter: &Arc<Adapter>,
        backend: &mut dyn Backend,
    ) -> Result<bool, BackendError> {
        let held = self.hold(adapter, backend)?;
        held.requests += 1;
        Ok(held.served)
    }

    /// Notes that a request has ended.
    pub(super) fn leave(&mut self, id: AdapterId, backend: &mut dyn Backend) {
        if let Some(held) = self.held.get_mut(&id) {
            held.requests = held.requests.saturating_sub(1);
        }
        self.sweep(id, backend);
    }

    /// Gives all of them to another backend.
    pub(super) fn load_all(&self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        self.held.iter().try_for_each(|(id, held)| backend.load_adapter(*id, &held.adapter.weights))
    }

    fn hold(&mut self, adapter: &Arc<Adapter>, backend: &mut dyn Backend) -> Result<&mut Held, BackendError> {
        let id = adapter.key.id;
        if !self.held.contains_key(&id) {
            backend.load_adapter(id, &adapter.weights)?;
        }
        let new = || Held { adapter: adapter.clone(), requests: 0, served: false };
        Ok(self.held.entry(id).or_insert_with(new))
    }

    fn sweep(&mut self, id: AdapterId, backend: &mut dyn Backend) {
        if self.held.get(&id).is_some_and(|held| !held.served && held.requests == 0) {
            self.held.remove(&id);
            backend.unload_adapter(id);
        }
    }
}
