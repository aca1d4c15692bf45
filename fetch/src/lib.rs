//! Fetches a model to a folder: from the Hugging Face Hub, an S3 bucket, an OCI registry, or by HTTPS.
//!
//! An interrupted fetch goes on where it was. Every byte is checked against the source's own checksum
//! where it has one. The model appears at its final path all at once, and once there it is not fetched
//! again. Of several processes with one destination one fetches and the others wait for its result.
//! Memory does not grow with the model. This crate knows no Kubernetes.

mod checksum;
mod client;
mod credentials;
mod destination;
mod error;
mod name;
mod partial;
mod progress;
mod run;
mod source;
mod transfer;
mod unpack;

pub use client::Backoff;
pub use credentials::Credentials;
pub use error::FetchError;
pub use run::{FetchOptions, Fetched, run};
