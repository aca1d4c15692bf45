//! What every request of one platform shares.

use std::sync::Arc;

use strata_hop::Upstream;

use crate::calculator::Calculator;
use crate::identity::Owners;
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
            client: Upstream::new(),
            store: Store::open(&options.state)?,
            owners: Arc::default(),
            tools: Arc::new(tools),
            options: Arc::new(options),
        })
    }
}
