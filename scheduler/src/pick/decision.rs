//! Why a replica was picked, for people and for programs.

use std::fmt;

use strata_wire::replicas::Track;

use super::affinity::{Answer, Fit};
use super::cached::Cached;
use super::score::Parts;

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No other replica could take the request.
    OnlyOne,
    /// It holds more of the prompt than any other, and that outweighed its load.
    MostCached,
    /// It has the least to do, after what its cache saves.
    LeastLoaded,
    /// Several were equally good; it had the fewest requests in flight, or chance decided.
    Tie,
    /// It was its turn.
    Turn,
    /// Chance decided, for the better scores more often where the policy says so.
    Chance,
    /// It was the better of two that chance took.
    BetterOfTwo,
    /// It is expected to stay furthest below the objectives.
    Headroom,
    /// The request's session is at home there.
    Session,
    /// Prompts that begin so are at home there, and others are no better.
    Home,
}

/// What a request brought to the choice beside its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Brought {
    /// Whether it is of a session.
    pub session: bool,
    /// How near its adapter is where it goes; `None` when it is for none.
    pub adapter: Option<Fit>,
    /// What is expected of its answer.
    pub answer: Option<Answer>,
}

/// Where the prompt of a request is computed, of a model with replicas for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// By the prefill replica of this name.
    By(String),
    /// By the replica that answers, because the other way failed so.
    Here(&'static str),
}

impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(replica) => f.write_str(replica),
            Self::Here(why) => write!(f, "none({why})"),
        }
    }
}

/// One choice, with the numbers that it was made by.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The replica's name.
    pub replica: String,
    /// Its track, when requests are split over tracks.
    pub track: Option<Track>,
    /// The weighted sum of the parts.
    pub score: f64,
    /// The scores.
    pub parts: Parts,
    /// What it has of the prompt.
    pub cached: Cached,
    /// The same in blocks of the prompt's prefix.
    pub cached_blocks: usize,
    /// Blocks of the prompt's prefix.
    pub blocks: usize,
    /// Replicas that could have taken the request.
    pub candidates: usize,
    /// What decided.
    pub why: Why,
    /// Where its prompt is computed, where that is a question.
    pub prompt: Option<Prompt>,
    /// What the request brought to it.
    pub brought: Brought,
}

impl Decision {
    /// Why, in one sentence.
    pub fn sentence(&self) -> String {
        match self.why {
            Why::OnlyOne => "it was the only replica that could take the request",
            Why::MostCached => {
                let (cached, of) = (self.cached_blocks, self.blocks);
                return format!("it holds {cached} of the prompt's {of} blocks, more than any other");
            }
            Why::LeastLoaded => "it has the least to do, after what its cache saves",
            Why::Tie => "the best scored alike, and of these it had the fewest requests in flight",
            Why::Turn => "it was its turn",
            Why::Chance => "chance decided, as the policy has it",
            Why::BetterOfTwo => "it was the better of two that chance took",
            Why::Headroom => "it is expected to stay furthest below the objectives",
            Why::Session => "the request's session is at home there",
            Why::Home => "the best are alike, and of these prompts that begin so belong there",
        }
        .to_owned()
    }
}

/// `name=value` pairs, then `; ` and a sentence. Printable ASCII as long as the replica's name is.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "replica={} score={:.1} hit={:.2} queue={:.2} decode={:.2} latency={:.2} cached_blocks={}/{} candidates={}",
            self.replica,
            self.score,
            self.parts.hit,
            self.parts.queue,
            self.parts.decode,
            self.parts.latency,
            self.cached_blocks,
            self.blocks,
            self.candidates,
        )?;
        if self.cached.told {
            write!(f, " cached_tokens={:.0}", self.cached.tokens)?;
        }
        if self.brought.session {
            write!(f, " session={:.0}", self.parts.session)?;
        }
        if let Some(fit) = self.brought.adapter {
            write!(f, " adapter={fit}")?;
        }
        if let Some(answer) = self.brought.answer {
            write!(f, " answer={:.0}", answer.tokens)?;
        }
        if let Some(track) = self.track {
            write!(f, " track={track}")?;
        }
        if let Some(prompt) = &self.prompt {
            write!(f, " prefill={prompt}")?;
        }
        write!(f, "; {}", self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_itself() {
        let decision = Decision {
            replica: "m-0".to_owned(),
            track: None,
            score: 41.23,
            parts: Parts { hit: 0.857, queue: 0.0, decode: 0.016, latency: 0.1, ..Parts::default() },
            cached_blocks: 12,
            cached: Cached::guessed(12, 4.0),
            blocks: 14,
            candidates: 2,
            why: Why::MostCached,
            prompt: None,
            brought: Brought::default(),
        };
        insta::assert_snapshot!(decision, @"replica=m-0 score=41.2 hit=0.86 queue=0.00 decode=0.02 latency=0.10 cached_blocks=12/14 candidates=2; it holds 12 of the prompt's 14 blocks, more than any other");
        let tie = Decision { why: Why::Tie, cached_blocks: 0, track: Some(Track::Canary), ..decision };
        insta::assert_snapshot!(tie, @"replica=m-0 score=41.2 hit=0.86 queue=0.00 decode=0.02 latency=0.10 cached_blocks=0/14 candidates=2 track=canary; the best scored alike, and of these it had the fewest requests in flight");
        let told = Decision { cached: Cached::told([768, 0, 0]), ..tie.clone() };
        assert!(told.to_string().contains(" candidates=2 cached_tokens=768 track=canary; "));
        let brought = Brought {
            session: true,
            adapter: Some(Fit::Room),
            answer: Some(Answer::expected(200.0, Some(120))),
        };
        let parts = Parts { session: 1.0, ..tie.parts };
        let leant = Decision { brought, parts, why: Why::Session, ..tie.clone() }.to_string();
        assert!(
            leant.contains(" session=1 adapter=room answer=120 track=canary; the request's session"),
            "{leant}"
        );
        let by = |prompt| Decision { prompt: Some(prompt), ..tie.clone() }.to_string();
        assert!(by(Prompt::By("p-0".to_owned())).contains(" track=canary prefill=p-0; the best"));
        assert!(by(Prompt::Here("timeout")).contains(" prefill=none(timeout); "));
    }
}
