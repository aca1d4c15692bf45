//! Keeps a cache like the API server.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;

use futures::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;

use super::cache::{Cache, Change, Held, Marks};
use super::key::Key;
use super::schedule::Lane;

/// How an object of a watch becomes what is kept of it.
pub(super) trait Keep: Held + Sized {
    /// What is watched.
    type Watched: Resource + Clone + Debug + DeserializeOwned + Send + 'static;

    fn keep(object: Self::Watched) -> Self;
}

/// Counts the watches whose first list is still on its way.
#[derive(Clone, Debug)]
pub(super) struct Filling(signal::Sender<usize>);

impl Filling {
    pub(super) fn new() -> Self {
        Self(signal::Sender::new(0))
    }

    /// One more list is waited for.
    pub(super) fn expect(&self) -> Expected {
        self.0.send_modify(|left| *left += 1);
        Expected(Some(self.0.clone()))
    }

    pub(super) fn is_full(&self) -> bool {
        *self.0.borrow() == 0
    }

    pub(super) async fn full(&self) {
        let _ = self.0.subscribe().wait_for(|left| *left == 0).await;
    }
}

/// A list that is waited for, until it comes or is given up.
#[derive(Debug)]
pub(super) struct Expected(Option<signal::Sender<usize>>);

impl Expected {
    fn came(&mut self) {
        if let Some(filling) = self.0.take() {
            filling.send_modify(|left| *left -= 1);
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.came();
    }
}

/// Which objects of a kind a watch sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// Of this namespace; of all without one.
    pub(super) namespace: Option<String>,
    /// With these labels.
    pub(super) labels: Option<String>,
    /// With these fields.
    pub(super) fields: Option<String>,
}

impl Scope {
    fn config(&self) -> watcher::Config {
        watcher::Config {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            ..watcher::Config::default()
        }
    }
}

/// Feeds a cache from the API server, for ever. `tell` hears of every change.
pub(super) async fn feed<K: Keep>(
    api: Api<K::Watched>,
    scope: Scope,
    kind: &str,
    cache: &Cache<K>,
    expected: Expected,
    tell: impl Fn(&Change<K>, Lane),
) {
    let events = watch(api, scope.config()).default_backoff();
    follow(events, scope.namespace.as_deref(), kind, cache, expected, tell).await;
}

async fn follow<K: Keep>(
    events: impl Stream<Item = watcher::Result<Event<K::Watched>>>,
    namespace: Option<&str>,
    kind: &str,
    cache: &Cache<K>,
    mut expected: Expected,
    tell: impl Fn(&Change<K>, Lane),
) {
    let mut events = pin!(events);
    let mut listed = HashSet::new();
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Err(error) => {
                // The watcher goes on from where it was, or lists anew. One line says that it broke.
                if failing {
                    tracing::debug!(kind, %error, "the watch is still broken");
                } else {
                    tracing::warn!(kind, namespace, %error, "a watch broke; it is begun anew");
                }
                failing = true;
                continue;
            }
            Ok(Event::Init) => {
                listed.clear();
                cache.list_begins(namespace);
            }
            Ok(Event::InitApply(object)) => {
                listed.insert(Key::of(object.meta()));
                if let Some(change) = set(cache, object) {
                    tell(&change, Lane::Bulk);
                }
            }
            Ok(Event::InitDone) => {
                for change in cache.list_ended(namespace, &listed) {
                    tell(&change, Lane::Bulk);
                }
                listed = HashSet::new();
                expected.came();
            }
            Ok(Event::Apply(object)) => {
                if let Some(change) = set(cache, object) {
                    tell(&change, Lane::Urgent);
                }
            }
            Ok(Event::Delete(object)) => {
                if let Some(change) = cache.remove(object.meta()) {
                    tell(&change, Lane::Urgent);
                }
            }
        }
        if std::mem::take(&mut failing) {
            tracing::info!(kind, namespace, "the watch works again");
        }
    }
}

fn set<K: Keep>(cache: &Cache<K>, object: K::Watched) -> Option<Change<K>> {
    let marks = Marks::of(object.meta());
    cache.set(K::keep(object), marks)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::ObjectMeta;

    use super::*;

    impl Keep for ObjectMeta {
        type Watched = ConfigMap;

        fn keep(object: ConfigMap) -> Self {
            object.metadata
        }
    }

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        map.metadata.uid = Some(name.to_owned());
        map.metadata.resource_version = Some(version.to_owned());
        map
    }

    #[tokio::test]
    async fn a_broken_watch_and_a_new_list_lose_nothing() {
        let cache: Cache<ObjectMeta> = Cache::default();
        let filling = Filling::new();
        let told = RefCell::new(Vec::new());
        let tell = |change: &Change<ObjectMeta>, lane: Lane| {
            let what = match change {
                Change::Set { before: None, .. } => "new",
                Change::Set { .. } => "changed",
                Change::Gone(_) => "gone",
            };
            told.borrow_mut().push(format!("{} {what} {lane:?}", change.object().name.clone().unwrap()));
        };
        let events = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(object("a", "1"))),
            Ok(Event::InitApply(object("b", "2"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(object("a", "3"))),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitApply(object("a", "3"))),
            Ok(Event::InitApply(object("c", "4"))),
            Ok(Event::InitDone),
            Ok(Event::Delete(object("c", "5"))),
        ];
        let expected = filling.expect();
        assert!(!filling.is_full());
        follow(futures::stream::iter(events), None, "ConfigMap", &cache, expected, tell).await;
        filling.full().await;
        let expected =
            ["a new Bulk", "b new Bulk", "a changed Urgent", "c new Bulk", "b gone Bulk", "c gone Urgent"];
        assert_eq!(*told.borrow(), expected);
    }
}
