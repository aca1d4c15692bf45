//! The control plane: who is allowed, and under what policy.
//!
//! The gateway authenticates keys, authorizes models, reserves quota before a request and settles it
//! afterwards, meters what was used and appends it to a ledger, and passes requests on to the
//! scheduler. It reads no text of a request or a response.

pub mod ask;
pub mod clock;
pub mod directory;
pub mod events;
pub mod identity;
pub mod keys;
pub mod ledger;
pub mod quota;
