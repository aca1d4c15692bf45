//! A folder of manifests: the desired state where there is no Kubernetes.
//!
//! [`load`] reads the files; everything else is pure. A bad object stops only itself: it is left out,
//! and a [`Problem`] says where it stands, what is wrong and what to do.

mod fingerprint;
mod folder;
mod problem;
mod read;

pub use fingerprint::fingerprint;
pub use folder::{Folder, Source, keep_last_good};
pub use problem::{ObjectRef, Problem, ProblemReason};
pub use read::{from_texts, load};
