use std::collections::HashSet;

use super::super::loads::Load;
use super::*;

/// Runs plans against a cache that remembers what was written where, and makes each next token from
/// what the blocks hold: a wrong block table or a block shared by mistake changes the tokens.
struct Machine {
    planner: Planner,
    cache: Vec<[u32; BLOCK_TOKENS]>,
    wanted: HashMap<SequenceId, (usize, Vec<u32>)>,
    done: HashMap<SequenceId, Vec<u32>>,
    cached: HashMap<SequenceId, usize>,
    finished_at: HashMap<SequenceId, usize>,
    preemptions: usize,
    steps: usize,
    /// Guesses that came true.
    hits: usize,
    lower: Option<Lower>,
}

/// A tier below the pool: keeps what was evicted, brings it back late and in any order, and loses some.
#[derive(Default)]
struct Lower {
    stored: HashMap<BlockHash, [u32; BLOCK_TOKENS]>,
    open: Vec<Load>,
    /// What chance has made so far.
    chance: u32,
    brought: usize,
}

impl Lower {
    fn chance(&mut self, of: usize) -> usize {
        self.chance = self.chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.chance >> 16) as usize % of
    }
}

impl Machine {
    fn new(limits: StepLimits, blocks: usize, prefix_cache: bool) -> Self {
        Self {
            planner: Planner::new(limits, blocks, prefix_cache),
            cache: vec![[u32::MAX; BLOCK_TOKENS]; blocks],
            wanted: HashMap::new(),
            done: HashMap::new(),
            cached: HashMap::new(),
            finished_at: HashMap::new(),
            preemptions: 0,
            steps: 0,
            hits: 0,
            lower: None,
        }
    }

    /// Evicted blocks go down; a few of the loads that are open come to an end, one in eight badly.
    fn lower(&mut self, plan: &Plan) {
        let Some(lower) = &mut self.lower else { return };
        for change in self.planner.take_changes() {
            if let Change::Removed { block, hash } = change {
                lower.stored.insert(hash, self.cache[block as usize]);
                self.planner.offer(hash);
            }
        }
        lower.open.extend(&plan.loads);
        for _ in 0..lower.chance(4) {
            if lower.open.is_empty() {
                break;
            }
            let at = lower.chance(lower.open.len());
            let load = lower.open.swap_remove(at);
            if !self.planner.expects(&load) {
                self.planner.loaded(&load, true);
                continue;
            }
            let there = lower.chance(8) > 0;
            if there {
                assert_eq!(self.planner.pool.holders(load.block), 1, "a shared block is written to");
                self.cache[load.block as usize] = lower.stored[&load.hash];
                lower.brought += 1;
            } else {
                self.planner.withdraw(&load.hash);
            }
            self.planner.loaded(&load, there);
        }
    }

    fn add(&mut self, tokens: &[u32], count: usize, priority: i64, salt: Option<&str>) -> SequenceId {
        let new = NewSequence {
            tokens: tokens.to_vec(),
            priority,
            cache_salt: salt.map(str::to_owned),
            scored: false,
            adapter: None,
        };
        let id = self.planner.add(new).unwrap();
        self.wanted.insert(id, (count, Vec::new()));
        id
    }

    /// One step; `false` when there was nothing to run.
    fn step(&mut self) -> bool {
        let plan = self.planner.plan();
        for admission in &plan.admitted {
            self.cached.entry(admission.id).or_insert(admission.cached_tokens);
        }
        let awaits = self.planner.is_loading();
        self.lower(&plan);
        if plan.batch.spans.is_empty() {
            return awaits;
        }
        self.steps += 1;
        self.preemptions += plan.preempted.len();
        assert!(plan.batch.tokens.len() <= self.planner.limits.tokens);
        assert!(plan.parts.len() <= self.planner.limits.sequences);
        // A block that is written to in this step belongs to one sequence.
        let mut written = HashSet::new();
        for span in &plan.batch.spans {
            for i in 0..span.len {
                let at = span.context + i;
                let block = span.blocks[at / BLOCK_TOKENS];
                assert!(written.insert((block, at % BLOCK_TOKENS)));
                assert_eq!(self.planner.pool.holders(block), 1, "a shared block is written to");
                self.cache[block as usize][at % BLOCK_TOKENS] = plan.batch.tokens[span.start + i];
            }
        }
        self.conserved();
        self.planner.advance(&plan);
        for (part, span) in plan.parts.iter().zip(&plan.batch.spans) {
            assert_eq!(if part.samples { 1 + part.drafted } else { 0 }, span.logits.count());
            let drafts = &plan.batch.tokens[span.start + span.len - part.drafted..span.start + span.len];
            let mut sampled = Vec::new();
            for row in 0..span.logits.count() {
                let upto = span.context + span.len - part.drafted + row;
                let token = (0..upto).fold(17u32, |hash, at| {
                    let token = self.cache[span.blocks[at / BLOCK_TOKENS] as usize][at % BLOCK_TOKENS];
                    (hash ^ token).wrapping_mul(16_777_619)
                });
                sampled.push(token);
                let (count, output) = self.wanted.get_mut(&part.id).unwrap();
                output.push(token);
                if output.len() == *count {
                    let (_, output) = self.wanted.remove(&part.id).unwrap();
                    self.done.insert(part.id, output);
                    self.finished_at.insert(part.id, self.steps);
                    assert!(self.planner.remove(part.id));
                    break;
                }
                if drafts.get(row) != Some(&token) {
                    break;
                }
                self.hits += 1;
            }
            self.planner.push(part.id, &sampled);
        }
        true
    }

    /// Every block is free or held by a running sequence, and every sequence runs or waits.
    fn conserved(&self) {
        let held: HashSet<u32> = self.planner.holding().flat_map(|s| s.blocks.iter().copied()).collect();
        assert_eq!(held.len() + self.planner.pool.free(), self.planner.pool.total());
        let holders = self.planner.running.keys().chain(self.planner.loading.keys());
        let known: HashSet<SequenceId> = holders.chain(self.planner.waiting.keys()).map(|o| o.id).collect();
        assert_eq!(known, self.wanted.keys().copied().collect());
        let waiting = self.planner.waiting.values().chain(self.planner.loading.values());
        let waiting: usize = waiting.map(|s| s.tokens.len()).sum();
        assert_eq!(waiting, self.planner.state().waiting_tokens);
    }

    /// Guesses what follows in every sequence that decodes: right at first, wrong after `right` tokens.
    fn guess(&mut self, right: usize, count: usize) {
        let decoding: Vec<(SequenceId, Vec<u32>)> =
            self.planner.decoding().map(|(id, tokens)| (id, tokens.to_vec())).collect();
        for (id, mut tokens) in decoding {
            let begin = tokens.len();
            for i in 0..count {
                let next = tokens.iter().fold(17u32, |hash, t| (hash ^ t).wrapping_mul(16_777_619));
                tokens.push(if i < right { next } else { next ^ 1 });
            }
            self.planner.propose(id, &tokens[begin..]);
        }
    }

    fn finish(&mut self) {
        while self.step() {}
        assert!(self.planner.is_idle() && self.wanted.is_empty(), "the planner stands still");
        let state = self.planner.state();
        assert_eq!(state.free_blocks, state.total_blocks);
    }
}

const WIDE: StepLimits = StepLimits { tokens: 512, sequences: 64 };

fn alone(tokens: &[u32], count: usize) -> Vec<u32> {
    let mut machine = Machine::new(StepLimits { tokens: 100_000, sequences: 1 }, 512, false);
    let id = machine.add(tokens, count, 0, None);
    machine.finish();
    machine.done.remove(&id).unwrap()
}

fn prompt(family: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| i.wrapping_mul(31) ^ family).collect()
}

#[test]
fn two_requests_that_share_384_tokens_hold_the_same_blocks() {
    let mut machine = Machine::new(WIDE, 128, true);
    let shared = prompt(0, 384);
    let a: Vec<u32> = shared.iter().copied().chain(prompt(1, 128)).collect();
    let b: Vec<u32> = shared.iter().copied().chain(prompt(2, 128)).collect();
    // Both arrive at once: the second waits for the first's prefix instead of computing it again.
    let (ia, ib) = (machine.add(&a, 40, 0, None), machine.add(&b, 40, 0, None));
    machine.step();
    assert_eq!(machine.planner.blocks(ib), None);
    machine.step();
    let (ba, bb) = (machine.planner.blocks(ia).unwrap(), machine.planner.blocks(ib).unwrap());
    assert_eq!(ba[..24], bb[..24]);
    assert!(ba[24..].iter().all(|block| !bb.contains(block)));
    assert_eq!(machine.planner.state().free_blocks, 128 - 24 - (ba.len() - 24) - (bb.len() - 24));
    machine.finish();
    assert_eq!(machine.cached[&ia], 0);
    assert_eq!(machine.cached[&ib], 384);
    assert_eq!(machine.done[&ia], alone(&a, 40));
    assert_eq!(machine.done[&ib], alone(&b, 40));
}

#[test]
fn at_least_one_token_is_computed_and_salts_share_nothing() {
    let mut machine = Machine::new(WIDE, 128, true);
    let tokens = prompt(0, 64);
    let first = machine.add(&tokens, 3, 0, None);
    machine.finish();
    let again = machine.add(&tokens, 3, 0, None);
    let salted = machine.add(&tokens, 3, 0, Some("other"));
    machine.finish();
    assert_eq!(machine.cached[&again], 48);
    assert_eq!(machine.cached[&salted], 0);
    assert_eq!(machine.done[&first], machine.done[&again]);
    assert_eq!(machine.done[&first], machine.done[&salted]);
}

#[test]
fn an_answer_is_cached_for_the_next_turn() {
    let mut machine = Machine::new(WIDE, 128, true);
    let mut tokens = prompt(0, 40);
    let id = machine.add(&tokens, 60, 0, None);
    machine.finish();
    tokens.extend(&machine.done[&id]);
    tokens.extend(prompt(9, 10));
    let next = machine.add(&tokens, 1, 0, None);
    machine.finish();
    // 99 tokens were computed: all but the last that was sampled.
    assert_eq!(machine.cached[&next], 96);
}

#[test]
fn decodes_go_before_prompts_and_a_long_prompt_comes_in_pieces() {
    let mut machine = Machine::new(StepLimits { tokens: 64, sequences: 8 }, 256, true);
    let short = machine.add(&prompt(0, 10), 20, 0, None);
    machine.step();
    let long = machine.add(&prompt(1, 500), 2, 0, None);
    let plan = machine.planner.plan();
    let parts: Vec<_> = plan.parts.iter().map(|p| (p.id, p.tokens, p.samples)).collect();
    assert_eq!(parts, [(short, 1, true), (long, 63, false)]);
    machine.planner.advance(&plan);
    machine.planner.remove(short);
    machine.planner.remove(long);
    assert_eq!(machine.planner.state().free_blocks, 256);
}

#[test]
fn lower_priority_values_go_first_and_arrival_breaks_ties() {
    let mut machine = Machine::new(StepLimits { tokens: 64, sequences: 1 }, 64, false);
    let ids = [(5, 0), (1, 1), (5, 2), (-3, 3)].map(|(p, f)| machine.add(&prompt(f, 8), 1, p, None));
    let mut order = Vec::new();
    while !machine.planner.is_idle() {
        let plan = machine.planner.plan();
        order.push(plan.parts[0].id);
        machine.planner.advance(&plan);
        machine.planner.remove(plan.parts[0].id);
    }
    assert_eq!(order, [ids[3], ids[1], ids[0], ids[2]]);
}

#[test]
fn the_youngest_starts_over_when_blocks_run_out() {
    let mut machine = Machine::new(WIDE, 8, true);
    let old = machine.add(&prompt(0, 48), 60, 0, None);
    let young = machine.add(&prompt(1, 48), 60, 0, None);
    machine.finish();
    assert!(machine.preemptions > 0);
    assert_eq!(machine.done[&old], alone(&prompt(0, 48), 60));
    assert_eq!(machine.done[&young], alone(&prompt(1, 48), 60));
}

#[test]
fn what_was_evicted_comes_back_while_others_run() {
    let mut machine = Machine::new(WIDE, 10, true);
    machine.lower = Some(Lower { chance: 5, ..Lower::default() });
    let tokens = prompt(0, 100);
    let first = machine.add(&tokens, 1, 0, None);
    machine.finish();
    machine.add(&prompt(1, 140), 1, 0, None);
    machine.finish();
    let again = machine.add(&tokens, 1, 0, None);
    let plan = machine.planner.plan();
    assert_eq!(plan.loads.len(), 5, "the first block was not evicted");
    assert!(plan.parts.is_empty() && machine.planner.is_loading() && !machine.planner.is_idle());
    let other = machine.add(&prompt(2, 8), 1, 0, None);
    let step = machine.planner.plan();
    assert_eq!(step.parts.iter().map(|p| p.id).collect::<Vec<_>>(), [other], "it does not wait");
    machine.planner.remove(other);
    machine.wanted.remove(&other);
    machine.lower.as_mut().unwrap().open = plan.loads;
    machine.finish();
    assert_eq!(machine.done[&again], machine.done[&first]);
    let lower = machine.lower.unwrap();
    assert!(lower.brought > 0 && machine.cached[&again] <= 96);
}

#[test]
fn a_load_whose_sequence_is_gone_is_not_expected() {
    let mut machine = Machine::new(WIDE, 10, true);
    let tokens = prompt(0, 40);
    let mut chain = crate::block::HashChain::new(None);
    chain.extend(&tokens);
    chain.hashes().iter().for_each(|hash| machine.planner.offer(*hash));
    let id = machine.add(&tokens, 1, 0, None);
    let loads = machine.planner.plan().loads;
    assert_eq!(loads.len(), 2);
    assert_eq!(machine.planner.state().free_blocks, 8);
    assert!(machine.planner.expects(&loads[0]));
    machine.planner.loaded(&loads[0], true);
    assert!(!machine.planner.expects(&loads[0]) && machine.planner.expects(&loads[1]));
    machine.planner.remove(id);
    machine.planner.loaded(&loads[1], true);
    assert!(!machine.planner.expects(&loads[1]) && machine.planner.is_idle());
    assert_eq!(machine.planner.state().free_blocks, 10);
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut planner = Planner::new(WIDE, 4, true);
    let new = |tokens| NewSequence {
        tokens: vec![0; tokens],
        priority: 0,
        cache_salt: None,
        scored: false,
        adapter: None,
    };
    assert_eq!(planner.add(new(0)), Err(Refused::Empty));
    assert_eq!(planner.add(new(65)), Err(Refused::TooLong { tokens: 65, needed: 5, total: 4 }));
    assert!(planner.add(new(64)).is_ok());
}

#[test]
fn a_removed_owner_does_not_leave_others_waiting_for_its_prefix() {
    let mut machine = Machine::new(StepLimits { tokens: 32, sequences: 8 }, 64, true);
    let tokens = prompt(0, 200);
    let owner = machine.add(&tokens, 5, 0, None);
    let waiter = machine.add(&tokens, 5, 0, None);
    machine.step();
    machine.wanted.remove(&owner);
    assert!(machine.planner.remove(owner));
    assert!(!machine.planner.remove(owner), "twice is harmless");
    machine.finish();
    assert_eq!(machine.cached[&waiter], 32, "what the owner had finished is kept");
    assert_eq!(machine.done[&waiter], alone(&tokens, 5));
}

#[test]
fn guesses_that_come_true_save_steps_and_wrong_ones_leave_no_trace() {
    let mut machine = Machine::new(WIDE, 64, true);
    let tokens = prompt(0, 30);
    let id = machine.add(&tokens, 41, 0, None);
    machine.step();
    while machine.planner.blocks(id).is_some() {
        machine.guess(3, 4);
        machine.step();
    }
    assert_eq!(machine.done[&id], alone(&tokens, 41));
    assert_eq!((machine.steps, machine.hits), (11, 30), "one by the prompt, then four a step");
    let next = machine.add(&[tokens, machine.done[&id].clone()].concat(), 1, 0, None);
    machine.finish();
    assert_eq!(machine.cached[&next], 64, "only what was accepted has a name, and all of it");
}

#[test]
fn a_short_prompt_does_not_wait_behind_a_long_one() {
    let mut machine = Machine::new(StepLimits { tokens: 64, sequences: 8 }, 1024, false);
    let long = machine.add(&prompt(0, 4096), 1, 0, None);
    machine.step();
    let longer = machine.add(&prompt(1, 8192), 1, 0, None);
    let short = machine.add(&prompt(2, 100), 1, 0, None);
    machine.finish();
    assert_eq!(machine.finished_at[&short], 1 + 4, "the half that the first leaves");
    assert_eq!(
        machine.finished_at[&long],
        (4096 + 100usize).div_ceil(64),
        "what the short one took is all that it lost"
    );
    assert_eq!(machine.finished_at[&longer], (4096 + 8192 + 100usize).div_ceil(64));
}

#[test]
fn a_prompt_beside_decodes_takes_what_its_cost_allows() {
    let mut machine = Machine::new(StepLimits { tokens: 512, sequences: 8 }, 1024, false);
    let decode = machine.add(&prompt(0, 10), 50, 0, None);
    machine.step();
    let plan = machine.planner.plan();
    machine.planner.advance(&plan);
    machine.planner.observe(&plan, 0.004);
    machine.planner.push(decode, &[1]);
    machine.add(&prompt(1, 4096), 1, 0, None);
    let plan = machine.planner.plan();
    assert_eq!(plan.rows(), (1, 511), "a prompt's cost is not known yet");
    machine.planner.advance(&plan);
    machine.planner.observe(&plan, 0.004 + 511.0 * 0.000_25);
    machine.planner.push(decode, &[1]);
    assert_eq!(machine.planner.plan().rows(), (1, 28), "2.8 times the step without");
}

#[test]
fn what_is_admitted_has_room_to_grow() {
    let mut machine = Machine::new(WIDE, 12, false);
    for family in 0..6 {
        machine.add(&prompt(family, 30), 100, 0, None);
    }
    let mut generated = 0;
    while machine.step() {
        generated =
            machine.wanted.values().map(|(_, output)| output.len()).sum::<usize>() + 100 * machine.done.len();
    }
    assert_eq!(generated, 600);
    // Each time somebody is admitted, a block is left for all to grow into: 16 tokens before the next
    // can lose its own.
    assert!(machine.preemptions > 0 && machine.preemptions < 600 / 16, "{}", machine.preemptions);
}

#[test]
fn urgent_arrivals_cannot_starve_one_that_is_not() {
    let mut machine = Machine::new(StepLimits { tokens: 32, sequences: 2 }, 16, true);
    let mut patient = None;
    for i in 0..2000 {
        machine.add(&prompt(i, 20), 3, 0, None);
        machine.step();
        if i == 10 {
            patient = Some(machine.add(&prompt(7777, 200), 5, 1, None));
        }
        if patient.is_some_and(|id| machine.done.contains_key(&id)) {
            return assert!(i > 200, "urgent ones do go first for a while: {i}");
        }
    }
    panic!("it starved");
}

mod histories {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Call {
        Add { family: u32, length: usize, count: usize, priority: i64 },
        Abort(usize),
        Steps { count: usize, right: usize, guesses: usize },
        Cost(f64),
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            3 => (0u32..3, 1usize..90, 1usize..30, -1i64..2)
                .prop_map(|(family, length, count, priority)| Call::Add { family, length, count, priority }),
            1 => (0usize..8).prop_map(Call::Abort),
            3 => (1usize..9, 0usize..4, 0usize..5)
                .prop_map(|(count, right, guesses)| Call::Steps { count, right, guesses }),
            1 => (0.0..0.1).prop_map(Call::Cost),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
        /// Batched equals alone, cached equals uncached, chunked equals whole and preempted equals
        /// not, for any history, any budget and any number of blocks; and every block comes back.
        #[test]
        fn tokens_depend_on_the_prompt_alone(
            calls in proptest::collection::vec(call(), 1..40),
            budget in 4usize..80,
            blocks in 8usize..40,
            prefix_cache in any::<bool>(),
            lower in proptest::option::of(any::<u32>()),
        ) {
            let mut machine = Machine::new(StepLimits { tokens: budget, sequences: 4 }, blocks, prefix_cache);
            machine.lower = lower.map(|chance| Lower { chance, ..Lower::default() });
            let mut asked = Vec::new();
            for call in calls {
                match call {
                    Call::Add { family, length, count, priority } => {
                        let tokens = prompt(family, length);
                        asked.push((machine.add(&tokens, count, priority, None), tokens, count));
                    }
                    Call::Abort(at) if !asked.is_empty() => {
                        let (id, ..) = asked.remove(at % asked.len());
                        machine.planner.remove(id);
                        machine.wanted.remove(&id);
                        machine.done.remove(&id);
                    }
                    Call::Abort(_) => {}
                    Call::Steps { count, right, guesses } => for _ in 0..count {
                        machine.guess(right, guesses);
                        machine.step();
                    },
                    Call::Cost(seconds) => {
                        machine.planner.cost.note(1, 0, 0.004);
                        machine.planner.cost.note(1, 10, seconds);
                    }
                }
            }
            machine.finish();
            for (id, tokens, count) in asked {
                prop_assert_eq!(&machine.done[&id], &alone(&tokens, count));
            }
        }

        /// Whatever arrives and is aborted, a sequence ends within a number of steps that depends only
        /// on those before it in order.
        #[test]
        fn nobody_waits_longer_than_those_before_it_take(
            calls in proptest::collection::vec(call(), 1..60),
            sequences in 1usize..5,
            more in 0usize..60,
            blocks in 8usize..40,
            prefix_cache in any::<bool>(),
        ) {
            let limits = StepLimits { tokens: sequences + more, sequences };
            let mut machine = Machine::new(limits, blocks, prefix_cache);
            let mut arrived = HashMap::new();
            for call in calls {
                match call {
                    Call::Add { family, length, count, priority } => {
                        let id = machine.add(&prompt(family, length), count, priority, None);
                        arrived.insert(id, (machine.steps, machine.planner.orders[&id]));
                    }
                    Call::Abort(at) => {
                        let id = SequenceId(at as u64);
                        if machine.wanted.remove(&id).is_some() {
                            machine.planner.remove(id);
                        }
                    }
                    Call::Steps { count, .. } => for _ in 0..count { machine.step(); },
                    Call::Cost(seconds) => {
                        machine.planner.cost.note(1, 0, 0.004);
                        machine.planner.cost.note(1, 10, seconds);
                    }
                }
            }
            machine.finish();
            // The first in order waits for a prefix, then for those that run to end, then runs. Its
            // share of prompts is half of what all get, which is LEAST or the budget beside decodes.
            let longest: usize = 90 + 30;
            let share = (16.min(limits.tokens - sequences + 1)).div_ceil(2);
            let read = longest.div_ceil(share);
            let turn = (2 * sequences + 1) * read + 2 * 30;
            for (id, at) in &machine.finished_at {
                let (from, order) = arrived[id];
                let before = arrived.values().filter(|(_, other)| *other < order).count();
                prop_assert!(at - from <= (before + 1) * turn, "{} steps, {before} before it", at - from);
            }
        }
    }
}

#[test]
fn a_scored_prompt_is_computed_whole_with_all_its_logits_in_bounded_chunks() {
    let limits = StepLimits { tokens: 256, sequences: 4 };
    let mut planner = Planner::new(limits, 64, true);
    let new = |scored| NewSequence {
        tokens: (0..200).collect(),
        priority: 0,
        cache_salt: None,
        scored,
        adapter: None,
    };
    for scored in [false, true, true] {
        let id = planner.add(new(scored)).unwrap();
        let mut rows = Vec::new();
        loop {
            let plan = planner.plan();
            planner.advance(&plan);
            rows.push((plan.batch.tokens.len(), plan.batch.logit_rows()));
            if plan.parts[0].samples {
                break;
            }
        }
        let whole = [(64, 64), (64, 64), (64, 64), (8, 8)];
        assert_eq!(rows, if scored { whole.to_vec() } else { vec![(200, 1)] });
        planner.remove(id);
    }
}
