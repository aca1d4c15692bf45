//! Conditions of objects: what is said about them, in words that machines may rely on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubeCondition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Truth {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody has looked yet.
    Unknown,
}

impl Truth {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why a condition is as it is. Part of the API: names are added, never changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// All reasons, with their meaning.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, concat!($($doc),+)),)+];

            /// As it stands in a condition.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

reasons! {
    /// All replicas serve and are routed to.
    Serving,
    /// No replica is wanted.
    ScaledToZero,
    /// Replicas are on their way.
    Starting,
    /// Replicas of a new revision take the place of old ones.
    Updating,
    /// A replica ends again and again; the message has its last words.
    Failing,
    /// Replicas serve, but the scheduler does not send them requests yet.
    NotRouted,
    /// All replicas serve, some of them of a new revision that is tried.
    CanaryServing,
    /// The model is being fetched.
    Downloading,
    /// The model cannot be fetched; the message says why.
    DownloadFailed,
    /// The image cannot be pulled.
    ImagePullFailed,
    /// A replica needs more memory than its limit.
    OutOfMemory,
    /// A replica did not serve within its start-up time.
    StartupTimeout,
    /// No node has room for a replica.
    Unschedulable,
    /// There is no spare GPU for a rollout: replicas are replaced one at a time, or not at all.
    NoSpareDevice,
    /// The namespace's quota does not allow more.
    QuotaExceeded,
    /// Pods cannot be made; the message says who refuses them.
    PodsRefused,
    /// The API server does not take an object that the model needs.
    ApplyFailed,
    /// Nothing in the cluster scales the model by load.
    AutoscalerMissing,
    /// What scales the model by load says that it cannot.
    AutoscalerFailing,
    /// Another object, older than this one, serves the same model name.
    NameConflict,
    /// The mode has no room for it.
    ModeLimit,
    /// It asks for something that is not built yet.
    NotBuilt,
    /// A rule or the schema refuses it.
    Invalid,
    /// The object is in force.
    Accepted,
    /// A Secret that it names is missing or incomplete.
    SecretMissing,
    /// The mode has no gateway, so that tenants and policies have no effect.
    NoGateway,
    /// The object is in a namespace that is not read.
    WrongNamespace,
    /// No gateway has taken up the object, in its present form, yet.
    NotTakenUp,
    /// The gateway cannot be asked.
    GatewayUnreachable,
    /// The gateway names a problem with the object.
    Problem,
    /// A limit of another policy counts in the place of one of this policy.
    Overridden,
}

/// One condition, without the time of its last change, which the backend knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What is said: `Ready`, or `Enforced` for a policy.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: Truth,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence that says what to do.
    pub message: String,
}

impl Condition {
    /// The main condition of a kind: `Enforced` for a QuotaPolicy, `Ready` for the others.
    pub fn main(kind: &str, status: Truth, reason: Reason, message: impl Into<String>) -> Self {
        let name = if kind == "QuotaPolicy" { "Enforced" } else { "Ready" };
        Self { kind: name.to_owned(), status, reason, message: message.into() }
    }
}

/// The conditions to write: those of `now`, whose time stays that of `before` while their status does.
pub fn stamp(
    before: &[KubeCondition],
    now: &[Condition],
    generation: i64,
    time: Timestamp,
) -> Vec<KubeCondition> {
    now.iter()
        .map(|condition| {
            let status = condition.status.as_str();
            let same = before.iter().find(|b| b.type_ == condition.kind && b.status == status);
            KubeCondition {
                type_: condition.kind.clone(),
                status: status.to_owned(),
                reason: condition.reason.as_str().to_owned(),
                message: condition.message.clone(),
                observed_generation: Some(generation),
                last_transition_time: same.map_or(Time(time), |b| b.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let say = |status, message: &str| [Condition::main("Tenant", status, Reason::Accepted, message)];
        let first = stamp(&[], &say(Truth::False, "a"), 1, at(1));
        let second = stamp(&first, &say(Truth::False, "b"), 2, at(2));
        assert_eq!((second[0].last_transition_time.0, second[0].message.as_str()), (at(1), "b"));
        assert_eq!(second[0].observed_generation, Some(2));
        let third = stamp(&second, &say(Truth::True, "c"), 2, at(3));
        assert_eq!(third[0].last_transition_time.0, at(3));
        assert_eq!(stamp(&third, &say(Truth::True, "c"), 2, at(9)), third, "nothing new is nothing to write");
    }

    #[test]
    fn reasons_are_frozen() {
        let table: Vec<String> = Reason::ALL.iter().map(|(r, doc)| format!("{}:{doc}", r.as_str())).collect();
        insta::assert_snapshot!(table.join("\n"));
    }
}
