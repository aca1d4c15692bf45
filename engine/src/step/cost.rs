//! What a step costs, learnt from the steps that were run, and how much of prompts a step may
//! therefore take beside decodes. Pure: durations come in as numbers.

/// A step with prompts may take this much longer than one without, as a share of the latter, times the
/// sequences for each that decodes: with 1 : 1, 2.8 times as long.
const PROMPT_SHARE: f64 = 0.9;
/// A prompt that takes so many seconds or less is brief. Whoever decodes hardly notices one, whether it is
/// read at once or bit by bit, and of a crowd of them each waits for all before it: so these are read
/// sooner than a long one, which would be noticed for as long as it is read.
const BRIEF: f64 = 0.5;
/// A step with brief prompts may take so many seconds longer than one without.
const BRIEF_SECONDS: f64 = 0.15;
/// Steps below this many seconds need not be cut: nobody notices them.
const UNNOTICED: f64 = 0.002;
/// Prompt tokens that a step takes at least, so that prompts go on whatever was measured.
const LEAST: usize = 16;
/// How much a new measurement counts beside all before it.
const NEWEST: f64 = 0.2;
/// Classes of row counts that are told apart.
const CLASSES: usize = 32;

/// A running mean that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn note(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + NEWEST * (value - mean)));
    }
}

/// Seconds of steps by what is in them.
#[derive(Clone, Debug, Default)]
pub struct StepCost {
    /// Of steps without prompts, by their rows.
    decode: [Mean; CLASSES],
    /// Of one more prompt token.
    prompt_token: Mean,
}

/// Row counts up to 8 are each their own class; above, there are two in each doubling.
fn class(rows: usize) -> usize {
    let rows = rows.max(1);
    if rows <= 8 {
        return rows - 1;
    }
    let octave = rows.ilog2();
    let upper = (rows >> (octave - 1)) & 1;
    (8 + 2 * (octave as usize - 3) + upper).min(CLASSES - 1)
}

impl StepCost {
    /// Notes that a step of `rows` decoded or drafted tokens and `prompt` prompt tokens took so long.
    pub fn note(&mut self, rows: usize, prompt: usize, seconds: f64) {
        match (rows, prompt) {
            (0, 0) => {}
            (_, 0) => self.decode[class(rows)].note(seconds),
            _ => {
                let rest = if rows == 0 { Some(0.0) } else { self.decode_seconds(rows) };
                let each = match rest {
                    Some(rest) => (seconds - rest).max(0.0) / prompt as f64,
                    None => seconds / (rows + prompt) as f64,
                };
                self.prompt_token.note(each);
            }
        }
    }

    /// Seconds of a step of so many rows and no prompt. A class that was not seen is taken to cost
    /// what the next smaller one does, or else the next larger: an optimist, who will soon know.
    pub fn decode_seconds(&self, rows: usize) -> Option<f64> {
        let at = class(rows);
        let (below, above) = self.decode.split_at(at + 1);
        below.iter().rev().chain(above).find_map(|mean| mean.0)
    }

    /// Whether a prompt of so many tokens to read is brief.
    pub fn is_brief(&self, tokens: usize) -> bool {
        self.prompt_token.0.is_some_and(|each| tokens as f64 * each <= BRIEF)
    }

    /// Tokens of prompts that a step with `decodes` decodes of `rows` rows may take while `prompts`
    /// prompts want to be read, and `brief` tokens of brief ones. The decodes' step grows by a fixed share,
    /// times all sequences for each decode: what delays few and speeds up many is worth it. For brief
    /// prompts it may grow by a fixed time instead.
    pub fn prompt_tokens(&self, rows: usize, decodes: usize, prompts: usize, brief: usize) -> usize {
        let (Some(rest), Some(each)) = (self.decode_seconds(rows), self.prompt_token.0) else {
            return usize::MAX;
        };
        let crowd = 1.0 + prompts as f64 / decodes.max(1) as f64;
        let brief = (brief as f64 * each).min(BRIEF_SECONDS);
        let more = (PROMPT_SHARE * crowd * rest).max(UNNOTICED - rest).max(brief);
        // A division that undoes a product may end just below the whole number. A cast of infinity is the
        // largest one.
        ((more / each + 1e-6) as usize).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_with_prompts_stays_near_one_without() {
        let mut cost = StepCost::default();
        assert_eq!(cost.prompt_tokens(4, 4, 1, 0), usize::MAX, "nothing is known");
        cost.note(4, 0, 0.008);
        cost.note(0, 512, 0.128);
        // 9 ms at a quarter of a millisecond each.
        assert_eq!(cost.prompt_tokens(4, 4, 1, 0), 36);
        assert_eq!(cost.prompt_tokens(4, 4, 4, 0), 57, "one waits for each that decodes");
        assert_eq!(cost.prompt_tokens(4, 4, 12, 0), 115, "three wait for each that decodes");
        for _ in 0..40 {
            cost.note(4, 10, 0.028);
        }
        assert_eq!(cost.prompt_tokens(4, 4, 1, 0), LEAST, "prompts became dear, and still go on");
    }

    #[test]
    fn brief_prompts_are_read_sooner() {
        let mut cost = StepCost::default();
        assert!(!cost.is_brief(1), "nothing is known");
        cost.note(16, 0, 0.032);
        cost.note(0, 512, 0.512);
        assert!(cost.is_brief(500) && !cost.is_brief(501));
        assert_eq!(cost.prompt_tokens(16, 16, 1, 40), 40, "all that there is");
        assert_eq!(cost.prompt_tokens(16, 16, 1, 10), 30, "as for a long one");
        assert_eq!(cost.prompt_tokens(16, 16, 4, 500), 150);
    }

    #[test]
    fn quick_steps_are_not_cut() {
        let mut cost = StepCost::default();
        cost.note(1, 0, 0.000_01);
        cost.note(1, 100, 0.000_11);
        assert!(cost.prompt_tokens(1, 1, 1, 0) > 1500);
        cost.note(1, 100, 0.000_005);
        assert!(cost.prompt_tokens(1, 1, 1, 0) > 1500, "a step below the idle one costs nothing");
    }

    #[test]
    fn unseen_sizes_take_the_nearest() {
        let mut cost = StepCost::default();
        assert_eq!(cost.decode_seconds(3), None);
        cost.note(6, 0, 0.6);
        assert_eq!(cost.decode_seconds(1), Some(0.6));
        cost.note(2, 0, 0.2);
        assert_eq!(cost.decode_seconds(1), Some(0.2));
        assert_eq!(cost.decode_seconds(5), Some(0.2));
        assert_eq!(cost.decode_seconds(1000), Some(0.6));
        let classes: Vec<usize> = (1..5000).map(class).collect();
        assert!(classes.is_sorted() && classes.iter().all(|c| *c < CLASSES));
        assert_ne!(class(8), class(9));
        assert_ne!(class(11), class(12));
    }
}
