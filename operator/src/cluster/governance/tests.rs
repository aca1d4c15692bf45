use std::sync::Arc;

use serde_json::json;
use strata_wire::governance::{PolicyReport, TenantReport};

use super::*;
use crate::Mode;

fn site() -> ClusterSite {
    ClusterSite::new("strata:1", Mode::Enterprise, "strata")
}

fn tenant(generation: i64, namespace: &str) -> Tenant {
    serde_json::from_value(json!({
        "apiVersion": "strata.dev/v1alpha1", "kind": "Tenant",
        "metadata": { "name": "acme", "namespace": namespace, "generation": generation },
        "spec": { "models": ["*"] },
    }))
    .unwrap()
}

fn policy() -> QuotaPolicy {
    serde_json::from_value(json!({
        "apiVersion": "strata.dev/v1alpha1", "kind": "QuotaPolicy",
        "metadata": { "name": "gold", "namespace": "strata", "generation": 1 },
        "spec": {},
    }))
    .unwrap()
}

fn says(tenant: TenantReport) -> Vec<GatewayView> {
    let status = GatewayStatus { tenants: vec![tenant], policies: Vec::new() };
    vec![GatewayView { pod: "gateway-0".into(), report: Ok(Arc::new(status)) }]
}

fn known(generation: i64) -> TenantReport {
    TenantReport {
        name: "acme".into(),
        generation: Some(generation),
        in_force: true,
        policies: vec!["gold".into()],
        ..TenantReport::default()
    }
}

fn budget(used: u64) -> BudgetUsage {
    BudgetUsage {
        policy: "gold".into(),
        period: "Month".into(),
        period_start: "2026-11-01T00:00:00Z".into(),
        period_end: "2026-12-01T00:00:00Z".into(),
        limit_tokens: 100,
        used_tokens: used,
        reserved_tokens: 0,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn words(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> String {
    let one = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)
    };
    conditions.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_tenant_is_as_the_gateway_says() {
    let say = |object: &Tenant, gateways: &[GatewayView]| {
        words(&tenant_status(object, &site(), gateways, at(0)).conditions)
    };
    let unreachable = vec![GatewayView { pod: "gateway-0".into(), report: Err("connection refused".into()) }];
    let wrong = TenantReport { problems: vec!["`spec.timeZone` is no time zone: fix it".into()], ..known(2) };
    let lines = [
        say(&tenant(2, "strata"), &[]),
        say(&tenant(2, "strata"), &unreachable),
        say(&tenant(2, "strata"), &says(known(1))),
        say(&tenant(2, "strata"), &says(TenantReport { in_force: false, ..known(2) })),
        say(&tenant(2, "strata"), &says(wrong)),
        say(&tenant(2, "strata"), &says(known(2))),
        say(&tenant(2, "elsewhere"), &says(known(2))),
    ];
    insta::assert_snapshot!(lines.join("\n\n"));
}

#[test]
fn all_gateways_must_have_it() {
    let mut two = says(known(2));
    two.extend(says(known(1)));
    let status = tenant_status(&tenant(2, "strata"), &site(), &two, at(0));
    assert_eq!(status.conditions[0].reason, "NotTakenUp");
}

#[test]
fn usage_is_written_once_a_minute() {
    let mut object = tenant(1, "strata");
    let mut look = |used, second| {
        let gateways = says(TenantReport { usage: vec![budget(used)], ..known(1) });
        let status = tenant_status(&object, &site(), &gateways, at(second));
        let changed = object.status.as_ref() != Some(&status);
        object.status = Some(status.clone());
        (status.usage[0].used_tokens, changed)
    };
    assert_eq!(look(5, 0), (5, true));
    assert_eq!(look(9, 30), (5, false), "within the minute nothing is written");
    assert_eq!(look(9, 61), (9, true));
    assert_eq!(look(9, 500), (9, false), "nothing new is nothing to write");

    let gone = vec![GatewayView { pod: "gateway-0".into(), report: Err("gone".into()) }];
    let status = tenant_status(&object, &site(), &gone, at(600));
    assert_eq!(status.usage[0].used_tokens, 9, "what is known stays while nobody can be asked");
    let none = tenant_status(&object, &site(), &says(known(1)), at(601));
    assert_eq!((none.usage.len(), none.usage_observed_at), (0, None), "a budget that is gone goes at once");
}

#[test]
fn a_policy_says_what_counts_in_its_place() {
    let report = PolicyReport {
        name: "gold".into(),
        generation: Some(1),
        in_force: true,
        tenants: 3,
        overridden: vec![
            Override {
                limit: "spec.limits[0]".into(),
                by: "older".into(),
                tie: true,
                tenants: 3,
                examples: vec!["acme".into(), "b".into()],
            },
            Override {
                limit: "spec.budget".into(),
                by: "exact".into(),
                tie: false,
                tenants: 1,
                examples: vec!["acme".into()],
            },
        ],
        ..PolicyReport::default()
    };
    let status = GatewayStatus { tenants: Vec::new(), policies: vec![report] };
    let gateways = [GatewayView { pod: "gateway-0".into(), report: Ok(Arc::new(status)) }];
    let said = policy_status(&policy(), &site(), &gateways, at(0));
    assert_eq!(said.tenants, Some(3));
    insta::assert_snapshot!(words(&said.conditions));
    let nobody = policy_status(&policy(), &ClusterSite { mode: Mode::Production, ..site() }, &[], at(0));
    assert_eq!(
        (nobody.conditions[0].type_.as_str(), nobody.conditions[0].reason.as_str()),
        ("Enforced", "NoGateway")
    );
}
