//! `/v1/responses`: one workflow step of an application, with the tools that the server runs itself.

mod agent;
mod chunk;
mod create;
mod event;
mod http;
pub(crate) mod intake;
pub(crate) mod item;
mod model;
mod object;
mod prompt;
mod request;
mod turn;

pub(crate) use http::{routes, unknown_after};
pub(crate) use request::json_body;
