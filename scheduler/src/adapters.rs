//! Which LoRA adapters a replica has loaded, as far as it can be known: it shows those of its running and
//! waiting requests. One that is loaded and idle it does not show, so those that were sent there last count
//! as loaded too, as many as there is room for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use strata_wire::metrics::engine::LORA_REQUESTS;

use crate::exposition::samples;
use crate::pick::Fit;

/// The most room that is believed: as many names are remembered.
const MOST_ROOM: usize = 1024;

/// What a replica shows of its adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Adapters that it has room for at once.
    room: usize,
    running: BTreeSet<Box<str>>,
    waiting: BTreeSet<Box<str>>,
}

impl Shown {
    /// Reads the text of `/metrics`. `None` of one that serves no adapters. Its value tells since when a
    /// series is so: of several of one engine, as older versions of vLLM leave them behind, the latest counts.
    pub fn parse(text: &str) -> Option<Self> {
        let from = memchr::memmem::find(text.as_bytes(), LORA_REQUESTS.as_bytes())?;
        let begins = text[..from].rfind('\n').map_or(0, |end| end + 1);
        let mut latest: BTreeMap<String, (f64, Self)> = BTreeMap::new();
        for sample in samples(&text[begins..]).filter(|sample| sample.name == LORA_REQUESTS) {
            let label = |name: &str| sample.label(name).unwrap_or_default();
            let names = |list: &str| -> BTreeSet<Box<str>> {
                list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Box::from).collect()
            };
            let shown = Self {
                room: label("max_lora").parse().unwrap_or(0).min(MOST_ROOM),
                running: names(&label("running_lora_adapters")),
                waiting: names(&label("waiting_lora_adapters")),
            };
            let engine = label("engine").into_owned();
            if latest.get(&engine).is_none_or(|(since, _)| *since <= sample.value) {
                latest.insert(engine, (sample.value, shown));
            }
        }
        let all = latest.into_values().map(|(_, shown)| shown).reduce(|mut all, other| {
            all.room += other.room;
            all.running.extend(other.running);
            all.waiting.extend(other.waiting);
            all
        });
        all.filter(|shown| shown.room > 0)
    }
}

/// A replica's adapters.
#[derive(Debug, Default)]
pub struct Adapters {
    shown: Shown,
    /// Those that were sent there, the last first.
    sent: VecDeque<Box<str>>,
}

impl Adapters {
    /// Takes what it shows.
    pub fn show(&mut self, shown: Shown) {
        self.sent.truncate(shown.room);
        self.shown = shown;
    }

    /// Another process has taken its place, which has loaded none.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// A request for this one is sent there.
    pub fn send(&mut self, name: &str) {
        if let Some(at) = self.sent.iter().position(|sent| **sent == *name) {
            if let Some(sent) = self.sent.remove(at) {
                self.sent.push_front(sent);
            }
            return;
        }
        self.sent.truncate(self.shown.room.saturating_sub(1));
        self.sent.push_front(name.into());
    }

    /// How near this one is there.
    pub fn fit(&self, name: &str) -> Fit {
        let Shown { room, running, waiting } = &self.shown;
        if running.contains(name) || self.sent.iter().any(|sent| **sent == *name) {
            return Fit::Loaded;
        }
        // Those that were sent there may have ended, and give way.
        match running.union(waiting).count() {
            used if used < *room => Fit::Room,
            _ if waiting.contains(name) => Fit::Coming,
            _ => Fit::NoRoom,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(engine: u8, running: &str, waiting: &str, since: f64) -> String {
        format!(
            "{LORA_REQUESTS}{{engine=\"{engine}\",max_lora=\"2\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}} {since}\n"
        )
    }

    fn adapters(text: &str) -> Adapters {
        let mut adapters = Adapters::default();
        adapters.show(Shown::parse(text).unwrap());
        adapters
    }

    #[test]
    fn vllms_gauge_is_read_and_the_latest_counts() {
        let head = format!("# HELP {LORA_REQUESTS} x\n# TYPE {LORA_REQUESTS} gauge\n");
        let it = adapters(&format!("{head}{}{}", line(0, "a,b", "", 1e9), line(0, "a", "c, d", 2e9)));
        let fits = ["a", "b", "c", "d"].map(|name| it.fit(name));
        assert_eq!(fits, [Fit::Loaded, Fit::NoRoom, Fit::Coming, Fit::Coming]);
        let two = adapters(&format!("{head}{}{}", line(0, "a", "", 1e9), line(1, "b", "c", 2e9)));
        assert_eq!(
            ["a", "b", "c", "d"].map(|name| two.fit(name)),
            [Fit::Loaded, Fit::Loaded, Fit::Room, Fit::Room]
        );
        let old = line(0, "a,b", "", 1e9).replace(r#"max_lora="2""#, r#"max_lora="0""#);
        assert_eq!(Shown::parse(&old), None, "it serves none");
        assert_eq!(Shown::parse(include_str!("telemetry/vllm.prom")), None);
        assert_eq!(Shown::parse("up 1\n"), None);
    }

    #[test]
    fn what_was_sent_there_last_is_taken_to_be_loaded() {
        let mut it = adapters(&line(0, "", "", 1e9));
        for name in ["a", "b", "a", "c"] {
            it.send(name);
        }
        assert_eq!(["a", "b", "c"].map(|name| it.fit(name)), [Fit::Loaded, Fit::Room, Fit::Loaded]);
        it.show(Shown::parse(&line(0, "x,y", "", 2e9)).unwrap());
        assert_eq!(["a", "b", "x"].map(|name| it.fit(name)), [Fit::Loaded, Fit::NoRoom, Fit::Loaded]);
        for n in 0..5000 {
            it.send(&n.to_string());
        }
        assert_eq!(it.sent.len(), 2, "bounded by the room");
    }
}
