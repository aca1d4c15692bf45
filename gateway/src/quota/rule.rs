//! What a policy comes down to: rules, each with one measure and one ceiling; and who asks.

use std::sync::Arc;

use jiff::tz::TimeZone;
use strata_kinds::glob;
use strata_kinds::quota_policy::{LimitScope, Per, Period, Resource, Selector};

/// Who asks, and for what. Decides which rules apply and which counters they use.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The key's public id.
    pub key: Arc<str>,
    /// An opaque hash of the tenant's user; requests that name none share one counter.
    pub user: Option<Arc<str>>,
    /// The tenant.
    pub tenant: Arc<str>,
    /// The tenant's tier.
    pub tier: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// Where the tenant's days begin.
    pub zone: TimeZone,
}

/// How much of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Requests.
    pub requests: u64,
    /// Prompt tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

impl Amounts {
    /// Nothing.
    pub const NONE: Self = Self { requests: 0, input: 0, output: 0 };

    /// Prompt and output tokens.
    pub fn tokens(&self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// What a rule measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// A resource in any trailing window.
    Window {
        /// What is counted.
        resource: Resource,
        /// The window's length.
        length_ms: u64,
        /// Whose counter it is.
        per: Per,
        /// Which models share it.
        scope: LimitScope,
    },
    /// A tenant's prompt and output tokens in a calendar period.
    Budget(Period),
    /// A tenant's requests in flight.
    InFlight,
}

impl Measure {
    /// How much of what a request takes this measure counts.
    pub fn amount(&self, of: &Amounts) -> u64 {
        match self {
            Self::Window { resource, .. } => match resource {
                Resource::Requests => of.requests,
                Resource::Tokens => of.tokens(),
                Resource::InputTokens => of.input,
                Resource::OutputTokens => of.output,
            },
            Self::Budget(_) => of.tokens(),
            Self::InFlight => of.requests,
        }
    }

    /// What is counted, in words.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Window { resource, .. } => match resource {
                Resource::Requests => "requests",
                Resource::Tokens => "tokens",
                Resource::InputTokens => "prompt tokens",
                Resource::OutputTokens => "output tokens",
            },
            Self::Budget(_) => "tokens",
            Self::InFlight => "requests in flight",
        }
    }
}

/// One limit of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The policy's name.
    pub policy: Arc<str>,
    /// When the policy was made, in milliseconds since 1970; `None` in a folder, where the name decides.
    pub created: Option<i64>,
    /// Whom and what it applies to.
    pub selector: Arc<Selector>,
    /// What it measures.
    pub measure: Measure,
    /// How much there is of it.
    pub ceiling: u64,
    /// `false`: counted and reported, nothing refused.
    pub enforced: bool,
    /// Whether a request that does not fit may be held until it does.
    pub waits: bool,
    /// Where it stands in its policy, such as `spec.limits[0]`.
    pub field: Arc<str>,
}

/// How exactly a selector names a tenant and a model; more is more exact.
pub fn exactness(selector: &Selector, tenant: &str, model: &str) -> (u8, u8) {
    let named = |patterns: &[String], name: &str| {
        patterns
            .iter()
            .filter(|p| glob::matches(p, name))
            .map(|p| if p.contains('*') { 1 } else { 2 })
            .max()
            .unwrap_or(0)
    };
    let whom = match named(&selector.tenants, tenant) {
        0 => u8::from(!selector.tiers.is_empty()),
        by => by + 1,
    };
    (whom, named(&selector.models, model))
}

impl Rule {
    /// Whether it applies to `subject`.
    pub fn applies(&self, subject: &Subject) -> bool {
        self.selector.selects(&subject.tenant, &subject.tier, &subject.model)
    }

    /// How exactly the rule names the subject: the tenant by name, by pattern, by tier, not at all;
    /// then the model by name, by pattern, not at all.
    fn exactness(&self, subject: &Subject) -> (u8, u8) {
        exactness(&self.selector, &subject.tenant, &subject.model)
    }

    /// Whether of the two only one counts for a subject that both apply to.
    pub fn is_same_limit(&self, other: &Self) -> bool {
        other.measure == self.measure
            && other.enforced == self.enforced
            && (self.enforced || other.policy == self.policy)
    }

    /// Whether both name the subject equally exactly.
    pub fn ties_with(&self, other: &Self, subject: &Subject) -> bool {
        self.exactness(subject) == other.exactness(subject)
    }

    /// Whether this rule counts for `subject` instead of `other`, which measures the same: the more
    /// exact one does, then the older, then the one whose policy's name comes first.
    pub fn outranks(&self, other: &Self, subject: &Subject) -> bool {
        let (mine, its) = (self.exactness(subject), other.exactness(subject));
        if mine != its {
            return mine > its;
        }
        let age = |rule: &Self| (rule.created.unwrap_or(i64::MAX), rule.policy.clone());
        match age(self).cmp(&age(other)) {
            std::cmp::Ordering::Equal => self.ceiling < other.ceiling,
            order => order.is_lt(),
        }
    }
}

/// The rules that count for `subject`, as places in `rules`.
///
/// Every matching policy applies. Where several enforced rules would be the same limit (same resource,
/// window, scope and owner of the counter), only the one that names the subject most exactly counts;
/// a limit for each key and one for the whole tenant are two limits, and both hold. A rule that is not
/// enforced never takes the place of one that is.
pub fn in_force(rules: &[Rule], subject: &Subject) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::new();
    for (i, rule) in rules.iter().enumerate().filter(|(_, r)| r.applies(subject)) {
        let rival = chosen.iter().position(|j| rules[*j].is_same_limit(rule));
        match rival {
            None => chosen.push(i),
            Some(place) if rule.outranks(&rules[chosen[place]], subject) => chosen[place] = i,
            Some(_) => {}
        }
    }
    chosen
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn subject(tenant: &str, tier: &str, model: &str) -> Subject {
        Subject {
            key: "k1".into(),
            user: None,
            tenant: tenant.into(),
            tier: tier.into(),
            model: model.into(),
            zone: TimeZone::UTC,
        }
    }

    pub(crate) fn window(resource: Resource, length_ms: u64, per: Per) -> Measure {
        Measure::Window { resource, length_ms, per, scope: LimitScope::AllModels }
    }

    pub(crate) fn rule(policy: &str, measure: Measure, ceiling: u64) -> Rule {
        Rule {
            policy: policy.into(),
            created: None,
            selector: Arc::default(),
            measure,
            ceiling,
            enforced: true,
            waits: false,
            field: "spec.limits[0]".into(),
        }
    }

    fn selecting(mut rule: Rule, tiers: &[&str], tenants: &[&str], models: &[&str]) -> Rule {
        let texts = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        rule.selector =
            Arc::new(Selector { tiers: texts(tiers), tenants: texts(tenants), models: texts(models) });
        rule
    }

    fn winners(rules: &[Rule], subject: &Subject) -> Vec<String> {
        in_force(rules, subject).into_iter().map(|i| rules[i].policy.to_string()).collect()
    }

    #[test]
    fn the_most_exact_of_the_same_limit_counts() {
        let minute = window(Resource::Requests, 60_000, Per::Tenant);
        let rules = [
            rule("a-all", minute, 1),
            selecting(rule("b-tier", minute, 2), &["gold"], &[], &[]),
            selecting(rule("c-glob", minute, 3), &[], &["ac*"], &[]),
            selecting(rule("d-name", minute, 4), &[], &["acme"], &[]),
            selecting(rule("e-model", minute, 5), &[], &["acme"], &["big"]),
        ];
        assert_eq!(winners(&rules, &subject("zeta", "free", "m")), ["a-all"]);
        assert_eq!(winners(&rules, &subject("zeta", "gold", "m")), ["b-tier"]);
        assert_eq!(winners(&rules, &subject("acre", "gold", "m")), ["c-glob"]);
        assert_eq!(winners(&rules, &subject("acme", "gold", "m")), ["d-name"]);
        assert_eq!(winners(&rules, &subject("acme", "gold", "big")), ["e-model"]);
    }

    #[test]
    fn other_windows_and_other_owners_are_other_limits() {
        let rules = [
            rule("a", window(Resource::Requests, 60_000, Per::Tenant), 1),
            rule("b", window(Resource::Requests, 3_600_000, Per::Tenant), 1),
            rule("c", window(Resource::Requests, 60_000, Per::Key), 1),
            rule("d", window(Resource::Tokens, 60_000, Per::Tenant), 1),
            rule("e", Measure::InFlight, 1),
        ];
        assert_eq!(winners(&rules, &subject("acme", "gold", "m")).len(), 5);
    }

    #[test]
    fn of_equals_the_older_counts_and_a_trial_replaces_nothing() {
        let minute = window(Resource::Requests, 60_000, Per::Tenant);
        let (mut old, mut young) = (rule("z", minute, 1), rule("a", minute, 2));
        (old.created, young.created) = (Some(1), Some(2));
        assert_eq!(winners(&[young.clone(), old.clone()], &subject("t", "x", "m")), ["z"]);
        young.enforced = false;
        young.created = Some(0);
        assert_eq!(winners(&[young, old], &subject("t", "x", "m")), ["a", "z"]);
    }
}
