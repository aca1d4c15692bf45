//! Which policies apply to whom, and which limits give way to others: what the counters do request by
//! request, told for all tenants at once. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use strata_kinds::quota_policy::{Period, Selector};

use super::rule::{Measure, Rule, Subject, exactness, in_force};

/// A policy as far as it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// When it was made, in milliseconds since 1970; `None` in a folder.
    pub created: Option<i64>,
    /// Whom and what it applies to.
    pub selector: Arc<Selector>,
}

/// A tenant as far as policies select it.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Its name.
    pub name: Arc<str>,
    /// Its tier.
    pub tier: Arc<str>,
    /// Where its days begin.
    pub zone: TimeZone,
}

/// A limit that gives way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GivesWay {
    /// Where it stands in its policy.
    pub field: Arc<str>,
    /// The policy whose limit counts instead.
    pub by: Arc<str>,
    /// Whether both are equally exact, so that age decided.
    pub tie: bool,
}

/// A budget that counts for a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InForce {
    /// Its place among the rules.
    pub rule: usize,
    /// Its period.
    pub period: Period,
}

/// What the policies come down to.
#[derive(Debug, Default)]
pub struct Resolution {
    /// By tenant: the policies that apply, the most exact first, then the older.
    pub policies: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// By tenant: the budgets that count for it.
    pub budgets: BTreeMap<Arc<str>, BTreeSet<InForce>>,
    /// By policy: its limits that give way, and for which tenants.
    pub overridden: BTreeMap<Arc<str>, BTreeMap<GivesWay, BTreeSet<Arc<str>>>>,
}

/// One model of each sort: those that every policy selects alike are of one sort. The empty name stands
/// for any model that no pattern names.
fn sorts<'m>(rules: &[Rule], models: impl Iterator<Item = &'m str>) -> Vec<Vec<&'m str>> {
    let patterns: BTreeSet<&[String]> = rules.iter().map(|r| r.selector.models.as_slice()).collect();
    let selectors: Vec<Selector> = patterns
        .into_iter()
        .map(|models| Selector { models: models.to_vec(), ..Selector::default() })
        .collect();
    let mut sorts: BTreeMap<Vec<(bool, u8)>, Vec<&'m str>> = BTreeMap::new();
    for model in models {
        let seen = |s: &Selector| (s.selects("", "", model), exactness(s, "", model).1);
        sorts.entry(selectors.iter().map(seen).collect()).or_default().push(model);
    }
    sorts.into_values().collect()
}

/// Resolves `rules` of `policies` for `tenants`, which may use a model as `permits` says.
pub fn resolve<'m>(
    policies: &[Policy],
    rules: &[Rule],
    tenants: impl Iterator<Item = Selected>,
    models: impl Iterator<Item = &'m str>,
    permits: impl Fn(&str, &str) -> bool,
) -> Resolution {
    let sorts = sorts(rules, models);
    let mut resolution = Resolution::default();
    for tenant in tenants {
        let mut applying: Vec<&Policy> =
            policies.iter().filter(|p| p.selector.selects_tenant(&tenant.name, &tenant.tier)).collect();
        applying.sort_by_key(|p| {
            let whom = exactness(&p.selector, &tenant.name, "").0;
            let narrows = !p.selector.models.is_empty();
            (std::cmp::Reverse((whom, narrows)), p.created.unwrap_or(i64::MAX), p.name.clone())
        });
        let names = applying.into_iter().map(|p| p.name.clone()).collect();
        resolution.policies.insert(tenant.name.clone(), names);
        let usable = |sort: &&Vec<&str>| sort.iter().any(|m| m.is_empty() || permits(&tenant.name, m));
        for sort in sorts.iter().filter(usable) {
            let subject = Subject {
                key: "".into(),
                user: None,
                tenant: tenant.name.clone(),
                tier: tenant.tier.clone(),
                model: sort[0].into(),
                zone: tenant.zone.clone(),
            };
            resolve_one(&mut resolution, rules, &subject);
        }
    }
    resolution
}

fn resolve_one(resolution: &mut Resolution, rules: &[Rule], subject: &Subject) {
    let chosen = in_force(rules, subject);
    for rule in &chosen {
        if let Measure::Budget(period) = rules[*rule].measure {
            let budgets = resolution.budgets.entry(subject.tenant.clone()).or_default();
            budgets.insert(InForce { rule: *rule, period });
        }
    }
    for (i, rule) in rules.iter().enumerate() {
        if chosen.contains(&i) || !rule.applies(subject) {
            continue;
        }
        let Some(winner) = chosen.iter().map(|j| &rules[*j]).find(|other| other.is_same_limit(rule)) else {
            continue;
        };
        if winner.policy != rule.policy {
            let gives_way = GivesWay {
                field: rule.field.clone(),
                by: winner.policy.clone(),
                tie: rule.ties_with(winner, subject),
            };
            let of_policy = resolution.overridden.entry(rule.policy.clone()).or_default();
            of_policy.entry(gives_way).or_default().insert(subject.tenant.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::compile;
    use super::*;

    fn resolved(policies: &[(&str, i64, Value)], tenants: &[(&str, &str)], models: &[&str]) -> String {
        let mut entries = Vec::new();
        let mut rules = Vec::new();
        for (name, created, spec) in policies {
            let spec: strata_kinds::QuotaPolicySpec = serde_json::from_value(spec.clone()).unwrap();
            rules.extend(compile(name, Some(*created), &spec).unwrap());
            entries.push(Policy {
                name: (*name).into(),
                created: Some(*created),
                selector: Arc::new(spec.selector),
            });
        }
        let tenants = tenants.iter().map(|(name, tier)| Selected {
            name: (*name).into(),
            tier: (*tier).into(),
            zone: TimeZone::UTC,
        });
        let models = std::iter::once("").chain(models.iter().copied());
        let resolution = resolve(&entries, &rules, tenants, models, |_, model| model != "hidden");
        let mut lines = Vec::new();
        for (tenant, policies) in &resolution.policies {
            let budgets: Vec<String> = resolution
                .budgets
                .get(tenant)
                .into_iter()
                .flatten()
                .map(|b| format!("{} {:?}", rules[b.rule].policy, b.period))
                .collect();
            lines.push(format!("{tenant}: {} | {}", policies.join(", "), budgets.join(", ")));
        }
        for (policy, limits) in &resolution.overridden {
            for (limit, tenants) in limits {
                let tie = if limit.tie { "older" } else { "more exact" };
                let tenants: Vec<&str> = tenants.iter().map(|t| &**t).collect();
                lines.push(format!(
                    "{policy} {} < {} ({tie}): {}",
                    limit.field,
                    limit.by,
                    tenants.join(", ")
                ));
            }
        }
        lines.join("\n")
    }

    #[test]
    fn what_applies_and_what_gives_way() {
        let minute = |limit: u64| json!([{"resource": "Requests", "limit": limit, "window": "1m"}]);
        let budget = |tokens: u64| json!({"tokens": tokens, "period": "Month"});
        let shown = resolved(
            &[
                ("all", 5, json!({"limits": minute(1), "budget": budget(10)})),
                ("all-too", 6, json!({"limits": minute(2)})),
                ("gold", 9, json!({"selector": {"tiers": ["gold"]}, "budget": budget(99)})),
                (
                    "acme",
                    9,
                    json!({"selector": {"tenants": ["acme"]}, "limits": minute(9), "concurrency": {"requests": 1}}),
                ),
                ("big", 9, json!({"selector": {"models": ["big*"]}, "limits": minute(3)})),
                ("hidden", 9, json!({"selector": {"models": ["hidden"]}, "limits": minute(3)})),
            ],
            &[("acme", "gold"), ("zeta", "free")],
            &["big-1", "big-2", "hidden"],
        );
        insta::assert_snapshot!(shown, @r"
        acme: acme, gold, big, hidden, all, all-too | gold Month
        zeta: big, hidden, all, all-too | all Month
        all spec.budget < gold (more exact): acme
        all spec.limits[0] < acme (more exact): acme
        all spec.limits[0] < big (more exact): zeta
        all-too spec.limits[0] < acme (more exact): acme
        all-too spec.limits[0] < all (older): zeta
        all-too spec.limits[0] < big (more exact): zeta
        big spec.limits[0] < acme (more exact): acme
        ");
    }
}
