//! Which part of a model's replicas a request goes to, while a new revision is tried out on a share of
//! the requests. Pure: the same requests in the same order are split the same way.
//!
//! Three wishes pull at it. The share should be what it is set to. One conversation should stay with
//! one revision, for its cached prefix is there and its answers should not change their manner. And
//! several schedulers should agree on it without talking. So a conversation goes where the hash of its
//! opening says, which every scheduler computes alike; only the first turn of a conversation is moved,
//! and only when the share is further off than chance explains (one prompt sent a thousand times, a
//! few very long conversations). What was moved is remembered.

use std::collections::{BTreeMap, VecDeque};

use strata_wire::prefix::Opening;
use strata_wire::replicas::Track;

use super::Candidate;

/// Conversations that are remembered as moved.
const REMEMBERED: usize = 8192;
/// Requests whose share is kept to: as many as this count for chance, later ones no more.
const COUNTED: u32 = 10_000;

/// How the requests of one model have been split so far.
#[derive(Debug, Default)]
pub struct Split {
    percent: Option<u8>,
    /// Requests that were split, up to [`COUNTED`].
    asked: u32,
    /// Requests that the canary has not had and should have had by its share; negative when it had
    /// more.
    owed: f64,
    moved: BTreeMap<u64, Track>,
    moved_in_order: VecDeque<u64>,
    turns: [u64; 2],
}

impl Split {
    /// Splits by this share from now on. Another share than before starts anew.
    pub fn set(&mut self, percent: Option<u8>) {
        if self.percent != percent {
            *self = Self { percent, turns: self.turns, ..Self::default() };
        }
    }

    /// The track that a request should go to. `None` when that makes no difference, because nothing is
    /// split or only one track can take it now.
    pub fn choose(&self, opening: Option<Opening>, candidates: &[Candidate<'_>]) -> Option<Track> {
        let share = self.share()?;
        let open = |track| candidates.iter().any(|c| c.track == track && c.is_open());
        if !open(Track::Stable) || !open(Track::Canary) {
            return None;
        }
        if share <= 0.0 {
            return Some(Track::Stable);
        }
        Some(match opening {
            None => self.lagging(share),
            Some(opening) => self.of_conversation(opening, share),
        })
    }

    /// A request went to the track that [`Split::choose`] said.
    pub fn chosen(&mut self, opening: Option<Opening>, track: Track) {
        let Some(share) = self.share() else { return };
        self.owed += share - f64::from(u8::from(track == Track::Canary));
        self.asked = (self.asked + 1).min(COUNTED);
        if let Some(opening) = opening.filter(|o| o.first) {
            if hashed(opening.hash, share) == track {
                self.moved.remove(&opening.hash);
            } else if self.moved.insert(opening.hash, track).is_none() {
                self.moved_in_order.push_back(opening.hash);
                if self.moved_in_order.len() > REMEMBERED
                    && let Some(oldest) = self.moved_in_order.pop_front()
                {
                    self.moved.remove(&oldest);
                }
            }
        }
    }

    /// Whose turn it is among a track's replicas, or among all: counts up with [`Split::placed`].
    pub fn turn(&self, track: Option<Track>) -> u64 {
        self.turns[place(track)]
    }

    /// A request was placed.
    pub fn placed(&mut self, track: Option<Track>) {
        self.turns[place(track)] += 1;
    }

    /// None too when all is the canary's: then it is promoted, the other track turns over to its revision,
    /// and the few replicas that tried it cannot take what was meant for all.
    fn share(&self) -> Option<f64> {
        self.percent.filter(|percent| *percent < 100).map(|percent| f64::from(percent) / 100.0)
    }

    fn lagging(&self, share: f64) -> Track {
        if self.owed + share >= 0.5 { Track::Canary } else { Track::Stable }
    }

    fn of_conversation(&self, opening: Opening, share: f64) -> Track {
        let home = self.moved.get(&opening.hash).copied().unwrap_or_else(|| hashed(opening.hash, share));
        if !opening.first {
            return home;
        }
        let off = match home {
            Track::Stable => self.owed + share,
            Track::Canary => 1.0 - share - self.owed,
        };
        if off > self.chance(share) { home.other() } else { home }
    }

    /// How many requests the split may be off by when each goes its way by chance: twice the standard
    /// deviation.
    fn chance(&self, share: f64) -> f64 {
        2.0 * (f64::from(self.asked + 1) * share * (1.0 - share)).sqrt() + 1.0
    }
}

fn place(track: Option<Track>) -> usize {
    usize::from(track == Some(Track::Canary))
}

/// The track of a conversation by its opening alone. With a larger share the canary keeps those that it
/// has.
fn hashed(hash: u64, share: f64) -> Track {
    let at = (hash >> 11) as f64 / (1u64 << 53) as f64;
    if at < share { Track::Canary } else { Track::Stable }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pick::{Cached, Forecast, Load};

    fn on(track: Track, eligible: bool) -> Candidate<'static> {
        Candidate {
            name: "m",
            track,
            eligible,
            load: Load::default(),
            cached: Cached::default(),
            bytes_per_token: 4.0,
            forecast: Forecast::default(),
            seed: 0,
            adapter: None,
        }
    }

    fn both() -> [Candidate<'static>; 2] {
        [on(Track::Stable, true), on(Track::Canary, true)]
    }

    fn split(percent: u8) -> Split {
        let mut split = Split::default();
        split.set(Some(percent));
        split
    }

    fn ask(split: &mut Split, opening: impl Into<Option<Opening>>) -> Track {
        let opening = opening.into();
        let track = split.choose(opening, &both()).unwrap();
        split.chosen(opening, track);
        track
    }

    fn first(hash: u64) -> Opening {
        Opening { hash, first: true, blocks: 0 }
    }

    fn later(hash: u64) -> Opening {
        Opening { hash, first: false, blocks: 0 }
    }

    /// A number that looks random, as a hash does.
    fn mixed(n: u64) -> u64 {
        let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    proptest! {
        /// Whatever is asked, in whatever order, even one prompt again and again: the share is never
        /// further off than chance allows.
        #[test]
        fn the_share_is_kept(
            percent in 0u8..100,
            kinds in prop::collection::vec((0u64..40, any::<bool>()), 1..2000),
        ) {
            let (mut split, mut canary) = (split(percent), 0.0);
            let share = f64::from(percent) / 100.0;
            for (n, (hash, by_turns)) in kinds.iter().enumerate() {
                let opening = (!by_turns).then(|| first(mixed(*hash)));
                canary += f64::from(u8::from(ask(&mut split, opening) == Track::Canary));
                let asked = (n + 1) as f64;
                let bound = 2.0 * (asked * share * (1.0 - share)).sqrt() + 2.0;
                prop_assert!((canary - share * asked).abs() <= bound, "{canary} of {asked} at {percent}%");
            }
        }

        /// Conversations that begin and go on in any order: each stays on the track that it began on.
        #[test]
        fn a_conversation_stays(
            percent in 0u8..100,
            turns in prop::collection::vec(0u64..60, 1..1500),
            seed: u64,
        ) {
            let (mut split, mut began) = (split(percent), BTreeMap::new());
            for conversation in turns {
                let hash = mixed(seed.wrapping_add(conversation));
                match began.get(&conversation) {
                    None => {
                        let track = ask(&mut split, first(hash));
                        began.insert(conversation, track);
                    }
                    Some(track) => prop_assert_eq!(ask(&mut split, later(hash)), *track),
                }
            }
        }

        /// A track that cannot take requests gives its share to the other, and nothing is owed to it
        /// when it comes back.
        #[test]
        fn a_closed_track_gives_its_share_away(percent in 0u8..100, canary_open: bool, asked in 1usize..500) {
            let mut split = split(percent);
            let candidates = [on(Track::Stable, !canary_open), on(Track::Canary, canary_open)];
            for n in 0..asked {
                prop_assert_eq!(split.choose(Some(first(mixed(n as u64))), &candidates), None);
            }
            let canary = (0..100).filter(|_| ask(&mut split, None) == Track::Canary).count();
            prop_assert_eq!(canary, usize::from(percent));
        }

        /// Schedulers that share the requests of ordinary conversations nearly always agree.
        #[test]
        fn several_schedulers_agree(percent in 5u8..=95, seed: u64) {
            let mut schedulers = [split(percent), split(percent)];
            let mut apart = 0;
            for n in 0..2000 {
                let hash = mixed(seed.wrapping_add(n));
                let at = (n % 2) as usize;
                let track = ask(&mut schedulers[at], first(hash));
                apart += usize::from(ask(&mut schedulers[1 - at], later(hash)) != track);
            }
            prop_assert!(apart <= 200, "{apart} of 2000 conversations changed their track");
        }
    }

    #[test]
    fn requests_that_tell_nothing_take_turns_evenly() {
        let mut split = split(25);
        let tracks: String =
            (0..12).map(|_| if ask(&mut split, None) == Track::Canary { 'c' } else { '.' }).collect();
        assert_eq!(tracks, ".c...c...c..");
    }

    #[test]
    fn a_larger_share_moves_nobody_back() {
        for n in 0..1000 {
            let hash = mixed(n);
            if hashed(hash, 0.1) == Track::Canary {
                assert_eq!(hashed(hash, 0.3), Track::Canary);
            }
        }
    }

    #[test]
    fn without_a_share_nothing_is_split() {
        let mut split = Split::default();
        assert_eq!(split.choose(Some(first(1)), &both()), None);
        split.chosen(Some(first(1)), Track::Stable);
        split.set(Some(100));
        assert_eq!(split.choose(Some(first(1)), &both()), None, "a canary that is promoted");
        split.set(Some(0));
        assert_eq!(split.choose(None, &both()), Some(Track::Stable));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut split = split(1);
        // Openings that all hash to the canary: nearly all of them are moved.
        for n in 0..(3 * REMEMBERED as u64) {
            ask(&mut split, first(n));
        }
        assert!(split.moved.len() <= REMEMBERED && split.moved_in_order.len() <= REMEMBERED);
        assert!(split.moved.len() > REMEMBERED / 2);
    }
}
