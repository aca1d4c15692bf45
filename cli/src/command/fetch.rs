//! `strata fetch`: a model from elsewhere to a folder.

use strata_fetch::{Credentials, FetchOptions};
use strata_hop::process;

use crate::{args, output};

pub(super) fn run(args: args::Fetch) -> anyhow::Result<()> {
    strata_operator::host::die_with_parent();
    process::init_logs();
    let options = FetchOptions {
        revision: args.revision,
        listen: args.listen,
        stall_timeout: args.stall_timeout,
        connections: args.connections.into(),
        verify: args.verify,
        allow_http: args.allow_http,
        credentials: Credentials::from_env()?,
        ..FetchOptions::new(args.uri, args.to)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let fetched = runtime.block_on(async {
        let shutdown = process::shutdown_on_signal()?;
        Ok::<_, anyhow::Error>(strata_fetch::run(options, shutdown).await?)
    })?;
    output::print(&format!("{}\n", fetched.path.display()))
}
