//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, in vLLM's shapes and words. As with all
//! control routes only the layer above may call them, and no tenant's request reaches them through it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use strata_hop::{Fault, spool};
use strata_wire::ErrorKind;

use super::members::Members;
use super::submit;
use crate::lora::Refusal;
use crate::runtime::Engine;

/// Bytes of a body.
const MAX_BODY: usize = 64 * 1024;
/// Bytes of a name, which stands in every answer and in a metric.
const MAX_NAME: usize = 256;

/// Serves the adapter in a folder under a name.
pub(super) async fn load(State(engine): State<Arc<Engine>>, body: Body) -> Result<String, Fault> {
    let members = Members::parse(&spool::read(body, MAX_BODY).await?)?;
    let name = name(&members)?;
    let path = members.text("lora_path")?.unwrap_or_default().to_owned();
    let in_place = members.boolean("load_inplace")?.unwrap_or(false);
    members.unbuilt("is_3d_lora_weight", |v| v == false, "remove it")?;
    let loading = engine.load_adapter(name.clone(), path.into(), in_place, submit::now());
    loading.await.map_err(|refusal| fault(&refusal))?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Serves an adapter no longer.
pub(super) async fn unload(State(engine): State<Arc<Engine>>, body: Body) -> Result<String, Fault> {
    let members = Members::parse(&spool::read(body, MAX_BODY).await?)?;
    let name = name(&members)?;
    engine.unload_adapter(&name).await.map_err(|refusal| fault(&refusal))?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

fn name(members: &Members) -> Result<String, Fault> {
    let name = members.text("lora_name")?.unwrap_or_default();
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let message = format!("`lora_name` must be at most {MAX_NAME} bytes without control characters");
        return Err(Fault::invalid_param("lora_name", message));
    }
    Ok(name.to_owned())
}

/// vLLM's statuses; but what is wrong with an adapter is not a failure of the server, for which clients
/// would try again.
fn fault(refusal: &Refusal) -> Fault {
    let (kind, param) = match refusal {
        Refusal::Off => (ErrorKind::NotFound, None),
        Refusal::Unknown(_) => (ErrorKind::NotFound, Some("lora_name")),
        Refusal::Missing { .. } => (ErrorKind::NotFound, Some("lora_path")),
        Refusal::Unusable { .. } => (ErrorKind::InvalidRequest, Some("lora_path")),
        Refusal::Incomplete | Refusal::Full(_) => (ErrorKind::InvalidRequest, None),
        Refusal::Nameless | Refusal::Base(_) | Refusal::Taken(_) => {
            (ErrorKind::InvalidRequest, Some("lora_name"))
        }
        Refusal::Device { .. } => (ErrorKind::Internal, None),
    };
    let fault = Fault::new(kind, refusal.to_string());
    match param {
        Some(param) => fault.param(param),
        None => fault,
    }
}
