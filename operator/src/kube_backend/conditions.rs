//! Conditions as Kubernetes has them: with the time of their last change. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubeCondition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::condition::Condition;

/// The conditions to write: those of `now`, whose time stays that of `before` while their status does.
pub(super) fn merge(
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
    use crate::condition::{Reason, Truth};

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let say = |status, message: &str| [Condition::main("Tenant", status, Reason::Accepted, message)];
        let first = merge(&[], &say(Truth::False, "a"), 1, at(1));
        let second = merge(&first, &say(Truth::False, "b"), 2, at(2));
        assert_eq!((second[0].last_transition_time.0, second[0].message.as_str()), (at(1), "b"));
        assert_eq!(second[0].observed_generation, Some(2));
        let third = merge(&second, &say(Truth::True, "c"), 2, at(3));
        assert_eq!(third[0].last_transition_time.0, at(3));
        assert_eq!(merge(&third, &say(Truth::True, "c"), 2, at(9)), third, "nothing new is nothing to write");
    }
}
