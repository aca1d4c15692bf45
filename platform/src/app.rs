//! What every request of one platform shares.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use strata_hop::Upstream;

use crate::calculator::Calculator;
use crate::identity::{Owner, Owners};
use crate::options::{PlatformError, PlatformOptions};
use crate::store::Store;
use crate::tool::Tools;

/// One platform: its options, database, tools and way to the next layer. Cloning shares them.
#[derive(Clone)]
pub struct App {
    pub(crate) options: Arc<PlatformOptions>,
    /// The next layer's URL, without a slash at its end.
    pub(crate) base: Arc<str>,
    pub(crate) client: Upstream,
    pub(crate) store: Store,
    pub(crate) owners: Arc<Owners>,
    /// Whose objects were given to whom.
    pub(crate) adopted: Arc<Mutex<HashSet<(Owner, Owner)>>>,
    pub(crate) tools: Arc<Tools>,
}

impl App {
    /// Opens the database, making or migrating it where needed, with the built-in tools.
    pub fn open(options: PlatformOptions) -> Result<Self, PlatformError> {
        let mut tools = Tools::default();
        tools.add(Arc::new(Calculator));
        Self::open_with(options, tools)
    }

    /// The same with these server-side tools.
    pub fn open_with(options: PlatformOptions, tools: Tools) -> Result<Self, PlatformError> {
        Ok(Self {
            base: options.base()?.into(),
            client: upstream(&options),
            store: Store::open(&options.state)?,
            owners: Arc::default(),
            adopted: Arc::default(),
            tools: Arc::new(tools),
            options: Arc::new(options),
        })
    }
}

/// The way to the next layer. A Service's name in the URL (`NAME.NAMESPACE.svc`) says of which namespace
/// it must be.
fn upstream(options: &PlatformOptions) -> Upstream {
    let upstream = Upstream::to(options.mtls.as_ref(), options.upstream_kind.callees());
    let host = options.upstream.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    let labels: Vec<&str> = host.as_deref().unwrap_or_default().split('.').collect();
    match labels[..] {
        [_, namespace, "svc", ..] => upstream.within(namespace),
        _ => upstream,
    }
}
