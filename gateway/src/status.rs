//! `GET /internal/v1/status`: what is in force, for the operator.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use jiff::Timestamp;
use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::governance::{BudgetUsage, GatewayStatus, Override, PolicyReport, TenantReport};

use crate::directory::{Directory, TenantEntry, Told};
use crate::gateway::Inner;
use crate::quota::calendar::span;
use crate::quota::{BudgetReading, CounterKey, Measure, Owner};
use crate::refuse;

/// Names given where many tenants are concerned.
const EXAMPLES: usize = 5;

/// The endpoint. Only a layer of Strata may ask.
pub(crate) async fn status(
    State(inner): State<Arc<Inner>>,
    request: Request,
) -> Result<Json<GatewayStatus>, Fault> {
    if !inner.above.knows(request.extensions(), request.headers()) {
        return Err(match inner.above.check(request.extensions(), request.headers()) {
            Err(why) => inner.above.refuse(&request, &why),
            Ok(()) => Fault::new(
                ErrorKind::InvalidApiKey,
                "this path answers only the other layers, and none can prove to be one: start all with \
                 STRATA_HOP_TOKEN, or with certificates",
            ),
        });
    }
    if !inner.has_state() {
        return Err(refuse::starting());
    }
    let work = inner.clone();
    let report = tokio::task::spawn_blocking(move || report(&work)).await;
    report.map(Json).map_err(|_| Fault::new(ErrorKind::Internal, "the status cannot be told just now"))
}

fn report(inner: &Inner) -> GatewayStatus {
    let readings = inner.accounts.budgets();
    compose(&inner.directory.load_full(), &readings, inner.clock.now_ms())
}

fn compose(directory: &Directory, readings: &HashMap<CounterKey, BudgetReading>, now: i64) -> GatewayStatus {
    let (resolution, objects) = (directory.resolution(), directory.objects.clone());
    let tenant = |known: Told| {
        let entry = directory.tenant(&known.name);
        let policies = resolution.policies.get(&*known.name);
        TenantReport {
            policies: policies.into_iter().flatten().map(ToString::to_string).collect(),
            usage: entry.map(|entry| usage(directory, entry, readings, now)).unwrap_or_default(),
            name: known.name,
            generation: known.generation,
            in_force: known.in_force,
            problems: known.problems,
        }
    };
    let mut applies_to: HashMap<&str, u64> = HashMap::new();
    for policy in resolution.policies.values().flatten() {
        *applies_to.entry(policy).or_default() += 1;
    }
    let policy = |known: Told| {
        let overridden = resolution.overridden.get(&*known.name).into_iter().flatten();
        PolicyReport {
            tenants: applies_to.get(&*known.name).copied().unwrap_or(0),
            overridden: overridden
                .map(|(limit, tenants)| Override {
                    limit: limit.field.to_string(),
                    by: limit.by.to_string(),
                    tie: limit.tie,
                    tenants: tenants.len() as u64,
                    examples: tenants.iter().take(EXAMPLES).map(ToString::to_string).collect(),
                })
                .collect(),
            name: known.name,
            generation: known.generation,
            in_force: known.in_force,
            problems: known.problems,
        }
    };
    GatewayStatus {
        tenants: objects.tenants.into_iter().map(tenant).collect(),
        policies: objects.policies.into_iter().map(policy).collect(),
    }
}

fn usage(
    directory: &Directory,
    tenant: &TenantEntry,
    readings: &HashMap<CounterKey, BudgetReading>,
    now: i64,
) -> Vec<BudgetUsage> {
    let budgets = directory.resolution().budgets.get(&tenant.name);
    let time = |ms: i64| Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |t| t.to_string());
    let told = budgets.into_iter().flatten().filter_map(|budget| {
        let rule = directory.rules.get(budget.rule)?;
        let key = CounterKey {
            policy: rule.policy.clone(),
            measure: Measure::Budget(budget.period),
            owner: Owner::Tenant(tenant.name.clone()),
            model: None,
        };
        let nothing = || BudgetReading { span: span(budget.period, &tenant.zone, now), used: 0, held: 0 };
        let reading = readings.get(&key).copied().unwrap_or_else(nothing);
        Some(BudgetUsage {
            policy: rule.policy.to_string(),
            period: format!("{:?}", budget.period),
            period_start: time(reading.span.start),
            period_end: time(reading.span.end),
            limit_tokens: rule.ceiling,
            used_tokens: reading.used.saturating_sub(reading.held),
            reserved_tokens: reading.held,
        })
    });
    told.collect()
}
