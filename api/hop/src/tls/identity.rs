//! Who a component is on a cluster, and whom it may talk to. Pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What stands before every identity.
const TRUST_DOMAIN: &str = "spiffe://strata/ns/";

/// A part of Strata that calls, or is called by, another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Responses, conversations and tools.
    Platform,
    /// Keys, tenants and quotas.
    Gateway,
    /// Which replica takes a request.
    Scheduler,
    /// One replica of a model.
    Engine,
    /// What should be running.
    Operator,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Platform, Self::Gateway, Self::Scheduler, Self::Engine, Self::Operator];

    /// Its name in identities, labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Gateway => "gateway",
            Self::Scheduler => "scheduler",
            Self::Engine => "engine",
            Self::Operator => "operator",
        }
    }

    /// Its name in a sentence.
    pub(crate) fn with_article(self) -> String {
        let article = if matches!(self, Self::Engine | Self::Operator) { "an" } else { "a" };
        format!("{article} {self}")
    }

    /// Whether it runs once, in Strata's own namespace; the others run beside the models.
    pub fn is_central(self) -> bool {
        matches!(self, Self::Platform | Self::Gateway | Self::Operator)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Component {
    type Err = NoComponent;

    fn from_str(name: &str) -> Result<Self, NoComponent> {
        Self::ALL.into_iter().find(|c| c.name() == name).ok_or_else(|| NoComponent(name.to_owned()))
    }
}

/// A word that names no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no component; those are platform, gateway, scheduler, engine and operator")]
pub struct NoComponent(String);

/// A component of one namespace, as its certificate names it:
/// `spiffe://strata/ns/NAMESPACE/COMPONENT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    namespace: Arc<str>,
    component: Component,
}

impl Identity {
    /// This component of this namespace. `None` when the namespace is not a DNS label.
    pub fn new(namespace: &str, component: Component) -> Option<Self> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let sound = (1..=63).contains(&namespace.len())
            && namespace.bytes().all(inner)
            && !namespace.starts_with('-')
            && !namespace.ends_with('-');
        sound.then(|| Self { namespace: Arc::from(namespace), component })
    }

    /// Reads the URI form. `None` for anything else than exactly that form.
    pub fn parse(uri: &str) -> Option<Self> {
        let (namespace, component) = uri.strip_prefix(TRUST_DOMAIN)?.split_once('/')?;
        Self::new(namespace, component.parse().ok()?)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The component.
    pub fn component(&self) -> Component {
        self.component
    }

    /// The namespace in which this component's peers of that kind are: its own, where both stand at
    /// Strata's centre or both beside the models. A central peer of one beside the models has only one
    /// namespace that it can be in, for the authority names it in no other.
    pub fn namespace_of(&self, peer: Component) -> Option<&str> {
        (self.component.is_central() == peer.is_central()).then_some(&*self.namespace)
    }

    /// Whether this peer is one of `components`, in `namespace` where that is known.
    pub fn check(&self, components: &[Component], namespace: Option<&str>) -> Result<(), Mismatch> {
        if !components.contains(&self.component) {
            return Err(Mismatch::Component { found: self.clone(), wanted: components.to_vec() });
        }
        match namespace {
            Some(wanted) if wanted != self.namespace() => {
                Err(Mismatch::Namespace { found: self.clone(), wanted: wanted.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Whether this caller is one of `callers` where `callee` expects it to be.
    pub fn may_call(&self, callee: &Identity, callers: &[Component]) -> Result<(), Mismatch> {
        self.check(callers, callee.namespace_of(self.component))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TRUST_DOMAIN}{}/{}", self.namespace, self.component)
    }
}

/// A peer that is another than it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Of another kind.
    #[error("{found} is not {}", list(wanted))]
    Component {
        /// Who it is.
        found: Identity,
        /// Which kinds would do.
        wanted: Vec<Component>,
    },
    /// Of another namespace.
    #[error("{found} is not of the namespace {wanted}")]
    Namespace {
        /// Who it is.
        found: Identity,
        /// Where it should be.
        wanted: String,
    },
}

/// `a scheduler, a gateway or an operator`.
pub(crate) fn list(components: &[Component]) -> String {
    let names: Vec<String> = components.iter().map(|c| c.with_article()).collect();
    match names.split_last() {
        None => "nobody".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(uri: &str) -> Identity {
        Identity::parse(uri).unwrap()
    }

    #[test]
    fn an_identity_is_read_back_as_it_was_written() {
        for component in Component::ALL {
            let written = Identity::new("team-a", component).unwrap();
            assert_eq!(Identity::parse(&written.to_string()), Some(written));
        }
        for wrong in [
            "",
            "spiffe://strata/ns/a",
            "spiffe://strata/ns//engine",
            "spiffe://strata/ns/a/engine/",
            "spiffe://strata/ns/a/b/engine",
            "spiffe://strata/ns/A/engine",
            "spiffe://strata/ns/a/ENGINE",
            "spiffe://strata/ns/a/kubelet",
            "spiffe://other/ns/a/engine",
            "spiffe://strata/ns/-a/engine",
            "https://strata/ns/a/engine",
        ] {
            assert_eq!(Identity::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Identity::new(&"a".repeat(64), Component::Engine), None);
    }

    #[test]
    fn callers_are_of_the_right_kind_and_place() {
        let engine = id("spiffe://strata/ns/models/engine");
        let callers = [Component::Scheduler, Component::Operator];
        let verdict = |caller: &str| match id(caller).may_call(&engine, &callers) {
            Ok(()) => "passes".to_owned(),
            Err(mismatch) => mismatch.to_string(),
        };
        assert_eq!(verdict("spiffe://strata/ns/models/scheduler"), "passes");
        assert_eq!(verdict("spiffe://strata/ns/strata/operator"), "passes");
        assert_eq!(
            verdict("spiffe://strata/ns/other/scheduler"),
            "spiffe://strata/ns/other/scheduler is not of the namespace models"
        );
        assert_eq!(
            verdict("spiffe://strata/ns/strata/gateway"),
            "spiffe://strata/ns/strata/gateway is not a scheduler or an operator"
        );
        let gateway = id("spiffe://strata/ns/strata/gateway");
        let elsewhere = id("spiffe://strata/ns/strata-2/platform").may_call(&gateway, &[Component::Platform]);
        assert!(matches!(elsewhere, Err(Mismatch::Namespace { .. })));
    }
}
