//! What the operator may do on a cluster: the one table, from which the chart's roles are made.

/// Where a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In Strata's own namespace.
    Own,
    /// In every namespace with models.
    Models,
    /// On objects without a namespace.
    Cluster,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it holds.
    pub scope: Scope,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// Plural names of the kinds.
    pub resources: &'static [&'static str],
    /// The only objects, by name; all when empty.
    pub names: &'static [&'static str],
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What it is for.
    pub why: &'static str,
}

const READ: &[&str] = &["get", "list", "watch"];
const MANAGE: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// The Secrets that the operator fills in Strata's namespace, where the chart makes them: of
/// [`crate::trust`], and the token.
const OWN_SECRETS: &[&str] =
    &["strata-ca", "strata-hop", "strata-hop-gateway", "strata-hop-operator", "strata-hop-platform"];
/// Those that it makes in each namespace with models.
const MODEL_SECRETS: &[&str] = &["strata-hop", "strata-hop-engine", "strata-hop-scheduler"];

const fn rule(
    scope: Scope,
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { scope, group, resources, names: &[], verbs, why }
}

const fn named(
    scope: Scope,
    group: &'static str,
    resources: &'static [&'static str],
    names: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { scope, group, resources, names, verbs, why }
}

/// All that the operator may do. It reads no Secret but its own, and writes nothing into a spec.
pub const RULES: &[Rule] = &[
    rule(Scope::Own, "strata.dev", &["tenants", "quotapolicies"], READ, "read who may call, and how much"),
    rule(
        Scope::Own,
        "strata.dev",
        &["tenants/status", "quotapolicies/status"],
        &["get", "patch"],
        "say what is in force",
    ),
    rule(Scope::Own, "", &["pods"], READ, "ask gateways what is in force"),
    rule(Scope::Own, "events.k8s.io", &["events"], &["create", "patch"], "tell of changes"),
    named(
        Scope::Own,
        "coordination.k8s.io",
        &["leases"],
        &["strata-operator"],
        &["get", "list", "watch", "update", "patch"],
        "one operator leads",
    ),
    // What is created has no name yet, as far as rules are concerned. The chart does not make it: Argo CD
    // passes over Leases.
    rule(Scope::Own, "coordination.k8s.io", &["leases"], &["create"], "make the Lease of the one that leads"),
    named(
        Scope::Own,
        "",
        &["serviceaccounts"],
        &["strata-operator"],
        &["get"],
        "let the Lease go with the operator's account",
    ),
    named(
        Scope::Own,
        "",
        &["secrets"],
        OWN_SECRETS,
        &["get", "list", "watch", "update", "patch"],
        "fill the layers' credentials, which the chart makes empty",
    ),
    rule(Scope::Models, "strata.dev", &["modeldeployments"], READ, "read what is to be served"),
    rule(
        Scope::Models,
        "strata.dev",
        &["modeldeployments/status"],
        &["get", "patch"],
        "say how it is served",
    ),
    rule(
        Scope::Models,
        "strata.dev",
        &["modeldeployments/finalizers"],
        &["update"],
        "own children where owners' deletion is enforced (OpenShift)",
    ),
    rule(
        Scope::Models,
        "apps",
        &["deployments", "controllerrevisions"],
        MANAGE,
        "run engines and schedulers",
    ),
    rule(Scope::Models, "apps", &["deployments/scale"], &["get", "patch"], "let models sleep and wake them"),
    rule(Scope::Models, "", &["services", "serviceaccounts"], MANAGE, "give them addresses and accounts"),
    rule(Scope::Models, "", &["pods"], READ, "see whether they serve; schedulers do too"),
    rule(
        Scope::Models,
        "rbac.authorization.k8s.io",
        &["roles", "rolebindings"],
        MANAGE,
        "let schedulers read the models and pods of their namespace",
    ),
    rule(Scope::Models, "policy", &["poddisruptionbudgets"], MANAGE, "drain nodes one replica at a time"),
    rule(
        Scope::Models,
        "networking.k8s.io",
        &["networkpolicies"],
        MANAGE,
        "let engines be called by schedulers alone",
    ),
    rule(Scope::Models, "autoscaling", &["horizontalpodautoscalers"], MANAGE, "scale by load"),
    rule(Scope::Models, "keda.sh", &["scaledobjects"], MANAGE, "scale by load, where there is KEDA"),
    rule(
        Scope::Models,
        "gateway.networking.k8s.io",
        &["httproutes"],
        MANAGE,
        "route to models, where there is the Gateway API",
    ),
    rule(
        Scope::Models,
        "inference.networking.k8s.io",
        &["inferencepools"],
        MANAGE,
        "name the replicas, where there is its Inference Extension",
    ),
    rule(
        Scope::Models,
        "inference.networking.x-k8s.io",
        &["inferenceobjectives"],
        MANAGE,
        "name the priorities, where there is its Inference Extension",
    ),
    rule(Scope::Models, "events.k8s.io", &["events"], &["create", "patch"], "tell of changes"),
    named(
        Scope::Models,
        "",
        &["secrets"],
        MODEL_SECRETS,
        // Created by server-side apply, which names what it creates.
        &["get", "list", "watch", "create", "update", "patch", "delete"],
        "keep the layers' credentials",
    ),
    rule(
        Scope::Cluster,
        "apiextensions.k8s.io",
        &["customresourcedefinitions"],
        READ,
        "see optional kinds come and go",
    ),
    named(
        Scope::Cluster,
        "apiregistration.k8s.io",
        &["apiservices"],
        &["v1beta1.external.metrics.k8s.io"],
        READ,
        "see an API for external metrics come and go",
    ),
];

/// The table as the chart reads it: a list of Kubernetes' PolicyRules for each scope.
pub fn yaml() -> String {
    const HEAD: &str = "\
# Generated from operator/src/rbac.rs: UPDATE_RBAC=1 cargo test -p strata-operator rbac
# What the operator may do. own: in Strata's namespace; models: in namespaces with models; cluster: on
# objects without a namespace.
";
    let scopes = [(Scope::Own, "own"), (Scope::Models, "models"), (Scope::Cluster, "cluster")];
    let lists = scopes.map(|(scope, name)| {
        let rules: String = RULES.iter().filter(|r| r.scope == scope).map(rule_yaml).collect();
        format!("{name}:\n{rules}")
    });
    format!("{HEAD}{}", lists.concat())
}

fn rule_yaml(rule: &Rule) -> String {
    let Rule { group, why, .. } = rule;
    let group = if group.is_empty() { "\"\"" } else { group };
    let (resources, verbs) = (rule.resources.join(", "), rule.verbs.join(", "));
    let names = match rule.names {
        [] => String::new(),
        names => format!("    resourceNames: [{}]\n", names.join(", ")),
    };
    format!(
        "  # {why}\n  - apiGroups: [{group}]\n    resources: [{resources}]\n{names}    verbs: [{verbs}]\n"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cluster::swept_kinds;

    #[test]
    fn the_charts_roles_are_the_table() {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/strata/files/rbac-operator.yaml");
        if std::env::var_os("UPDATE_RBAC").is_some() {
            std::fs::write(&path, yaml()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == yaml(),
            "{} differs from the table: run `UPDATE_RBAC=1 cargo test -p strata-operator rbac`",
            path.display()
        );
    }

    fn allowed(scope: Scope, group: &str, resource: &str) -> Vec<&'static str> {
        let is = |r: &&Rule| r.scope == scope && r.group == group && r.resources.contains(&resource);
        RULES.iter().filter(is).filter(|r| r.names.is_empty()).flat_map(|r| r.verbs).copied().collect()
    }

    #[test]
    fn every_child_can_be_managed_and_nothing_more() {
        let kinds = swept_kinds();
        for kind in &kinds {
            let verbs = allowed(Scope::Models, &kind.group, &kind.plural);
            assert!(MANAGE.iter().all(|verb| verbs.contains(verb)), "{} {verbs:?}", kind.plural);
        }
        for rule in RULES.iter().filter(|r| r.verbs.contains(&"delete") && r.names.is_empty()) {
            for resource in rule.resources {
                let known = kinds.iter().any(|k| k.group == rule.group && k.plural == *resource);
                assert!(known, "{resource} may be deleted, and is no child");
            }
        }
    }

    #[test]
    fn privileges_are_least() {
        for rule in RULES {
            for verb in rule.verbs {
                assert!(
                    !["*", "deletecollection", "escalate", "bind", "impersonate"].contains(verb),
                    "{rule:?}"
                );
            }
            assert!(!rule.resources.contains(&"*") && rule.group != "*", "{rule:?}");
            assert!(!rule.why.is_empty());
            if rule.resources.contains(&"secrets") {
                assert!(!rule.names.is_empty(), "Secrets are read and written by name: {rule:?}");
            }
            // The kinds of Strata are the user's: the operator writes their status alone.
            if rule.group == "strata.dev" && rule.resources.iter().all(|r| !r.contains('/')) {
                assert_eq!(rule.verbs, READ);
            }
        }
    }
}
