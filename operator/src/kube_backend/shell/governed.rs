//! Tenants and QuotaPolicies: the gateway enforces them, here is only said what it makes of them.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use strata_kinds::{QuotaPolicy, Tenant};

use super::{Reconciled, Shell};
use crate::cluster::{GatewayView, policy_status, tenant_status};
use crate::kube_backend::kept::Parsed;
use crate::kube_backend::key::Key;
use crate::kube_backend::views;

impl Shell {
    pub(super) async fn tenant(&self, key: &Key) -> Reconciled {
        let Some(parsed) = self.caches.tenants.get(key) else { return Ok(None) };
        match &*parsed {
            Parsed::Bad(invalid) => self.say_malformed::<Tenant>(invalid).await,
            Parsed::Good(tenant) if tenant.metadata.deletion_timestamp.is_some() => Ok(None),
            Parsed::Good(tenant) => {
                let views = self.gateways();
                let told = tenant
                    .status
                    .as_ref()
                    .is_some_and(|s| s.observed_generation == tenant.metadata.generation);
                if told && views::is_unasked_of(&views) {
                    return Ok(None);
                }
                let status = tenant_status(tenant, &self.site(), &views, Timestamp::now());
                self.say(&**tenant, tenant.status.as_ref(), &status, |s| &s.conditions).await?;
                Ok(None)
            }
        }
    }

    /// What each gateway pod says.
    fn gateways(&self) -> Vec<GatewayView> {
        let pods = self.caches.pods.group(&self.site.namespace, None);
        self.views.gateways(pods.iter().map(Arc::as_ref))
    }

    pub(super) async fn policy(&self, key: &Key) -> Reconciled {
        let Some(parsed) = self.caches.policies.get(key) else { return Ok(None) };
        match &*parsed {
            Parsed::Bad(invalid) => self.say_malformed::<QuotaPolicy>(invalid).await,
            Parsed::Good(policy) if policy.metadata.deletion_timestamp.is_some() => Ok(None),
            Parsed::Good(policy) => {
                let views = self.gateways();
                let told = policy
                    .status
                    .as_ref()
                    .is_some_and(|s| s.observed_generation == policy.metadata.generation);
                if told && views::is_unasked_of(&views) {
                    return Ok(None);
                }
                let status = policy_status(policy, &self.site(), &views, Timestamp::now());
                self.say(&**policy, policy.status.as_ref(), &status, |s| &s.conditions).await?;
                Ok(None)
            }
        }
    }
}
