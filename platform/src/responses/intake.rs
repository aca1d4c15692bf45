//! Reads the items that a client sends. Every item gets an id of ours, so that one that was taken from
//! another response never clashes.

use serde_json::Value;
use strata_hop::Fault;

use super::item::{
    CallError, FunctionCall, FunctionCallOutput, Item, Message, Output, Part, SERVER_LABEL, ServerCall,
    Status,
};
use crate::fields::{Fields, shown, wrong};
use crate::mint;
use crate::refusal::not_built;

/// Most items in one request.
pub(crate) const MAX_ITEMS: usize = 4096;

/// Reads `input`: a text, or a list of items.
pub(crate) fn input(path: &str, value: Value) -> Result<Vec<Item>, Fault> {
    match value {
        Value::String(text) => Ok(vec![user(text)]),
        Value::Array(_) => items(path, value),
        other => Err(wrong(path, "a string or an array of items", &other)),
    }
}

/// Reads a list of items.
pub(crate) fn items(path: &str, value: Value) -> Result<Vec<Item>, Fault> {
    let Value::Array(values) = value else {
        return Err(wrong(path, "an array of items", &value));
    };
    if values.len() > MAX_ITEMS {
        return Err(Fault::invalid_param(
            path,
            format!("'{path}' has {} items, and {MAX_ITEMS} is the limit", values.len()),
        ));
    }
    values.into_iter().enumerate().map(|(i, v)| item(&format!("{path}[{i}]"), v)).collect()
}

fn user(text: String) -> Item {
    Item::Message(Message {
        id: mint::id("msg"),
        status: Status::Completed,
        role: "user".to_owned(),
        content: vec![Part::InputText { text }],
    })
}

fn item(path: &str, value: Value) -> Result<Item, Fault> {
    let mut fields = Fields::new(path, value)?;
    fields.take("id");
    let status = status(&mut fields)?;
    let kind = fields.text("type")?.unwrap_or_else(|| "message".to_owned());
    let item = match kind.as_str() {
        "message" => message(&mut fields, status)?,
        "function_call" => {
            refuse_rare(&mut fields)?;
            Item::FunctionCall(FunctionCall {
                id: mint::id("fc"),
                status,
                call_id: fields.required_text("call_id")?,
                name: fields.required_text("name")?,
                arguments: fields.required_any_text("arguments")?,
            })
        }
        "function_call_output" => {
            let call_id = fields.required_text("call_id")?;
            fields.take("name");
            refuse_rare(&mut fields)?;
            let output = match fields.required("output")? {
                Value::String(text) => Output::Text(text),
                list @ Value::Array(_) => Output::Parts(parts(&fields.path("output"), list, false)?),
                other => {
                    return Err(wrong(&fields.path("output"), "a string or an array of texts", &other));
                }
            };
            Item::FunctionCallOutput(FunctionCallOutput { id: mint::id("fco"), status, call_id, output })
        }
        "mcp_call" => server_call(&mut fields, status)?,
        "item_reference"
        | "reasoning"
        | "file_search_call"
        | "web_search_call"
        | "code_interpreter_call"
        | "computer_call"
        | "computer_call_output"
        | "image_generation_call"
        | "local_shell_call"
        | "local_shell_call_output"
        | "mcp_list_tools"
        | "mcp_approval_request"
        | "mcp_approval_response"
        | "custom_tool_call"
        | "custom_tool_call_output"
        | "compaction" => {
            return Err(not_built(&fields.path("type"), &format!("the item type `{kind}`")));
        }
        _ => {
            return Err(Fault::invalid_param(
                &fields.path("type"),
                format!(
                    "unknown item type {} at '{path}': use message, function_call or function_call_output",
                    shown(&Value::String(kind))
                ),
            ));
        }
    };
    fields.finish()?;
    Ok(item)
}

/// Members of call items that change who may call what.
fn refuse_rare(fields: &mut Fields) -> Result<(), Fault> {
    fields.take("created_by");
    fields.refuse(&["async", "caller", "namespace"])
}

fn status(fields: &mut Fields) -> Result<Status, Fault> {
    match fields.text("status")?.as_deref() {
        None | Some("completed") => Ok(Status::Completed),
        Some("incomplete") => Ok(Status::Incomplete),
        Some("failed") => Ok(Status::Failed),
        Some(other) => Err(wrong(
            &fields.path("status"),
            "`completed`, `incomplete` or `failed`",
            &Value::String(other.to_owned()),
        )),
    }
}

fn message(fields: &mut Fields, status: Status) -> Result<Item, Fault> {
    let role = fields.required_text("role")?;
    if !["user", "assistant", "system", "developer"].contains(&role.as_str()) {
        return Err(wrong(
            &fields.path("role"),
            "`user`, `assistant`, `system` or `developer`",
            &Value::String(role),
        ));
    }
    fields.refuse(&["phase"])?;
    let assistant = role == "assistant";
    let content = match fields.required("content")? {
        Value::String(text) if assistant => vec![Part::output(text)],
        Value::String(text) => vec![Part::InputText { text }],
        list @ Value::Array(_) => parts(&fields.path("content"), list, assistant)?,
        other => return Err(wrong(&fields.path("content"), "a string or an array of parts", &other)),
    };
    Ok(Item::Message(Message { id: mint::id("msg"), status, role, content }))
}

fn parts(path: &str, list: Value, assistant: bool) -> Result<Vec<Part>, Fault> {
    let Value::Array(list) = list else {
        return Err(wrong(path, "an array of parts", &list));
    };
    if list.len() > MAX_ITEMS {
        return Err(Fault::invalid_param(path, format!("'{path}' has more than {MAX_ITEMS} parts")));
    }
    let mut read = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let mut fields = Fields::new(format!("{path}[{i}]"), value)?;
        let kind = fields.required_text("type")?;
        read.push(match (kind.as_str(), assistant) {
            ("input_text" | "text", false) => {
                fields.refuse(&["prompt_cache_breakpoint"])?;
                Part::InputText { text: fields.required_any_text("text")? }
            }
            ("output_text" | "input_text" | "text", true) => {
                let empty = [Value::Array(Vec::new())];
                fields.only("annotations", &empty)?;
                fields.only("logprobs", &empty)?;
                Part::output(fields.required_any_text("text")?)
            }
            ("refusal", true) => Part::Refusal { refusal: fields.required_any_text("refusal")? },
            ("input_image" | "input_file" | "input_audio" | "computer_screenshot", _) => {
                return Err(not_built(&fields.path("type"), &format!("the content type `{kind}`")));
            }
            _ => {
                let wanted = if assistant { "`output_text` or `refusal`" } else { "`input_text`" };
                return Err(wrong(&fields.path("type"), wanted, &Value::String(kind)));
            }
        });
        fields.finish()?;
    }
    Ok(read)
}

/// A call that this server ran in an earlier response, sent back by a client that keeps its own state.
fn server_call(fields: &mut Fields, status: Status) -> Result<Item, Fault> {
    let label = fields.required_text("server_label")?;
    if label != SERVER_LABEL {
        return Err(not_built(&fields.path("server_label"), "a call to another MCP server"));
    }
    fields.refuse(&["approval_request_id"])?;
    let error = fields
        .take("error")
        .map(|e| match e {
            Value::String(text) => Ok(CallError::new(&text)),
            other => serde_json::from_value(other)
                .map_err(|e| Fault::invalid_param(&fields.path("error"), format!("invalid error: {e}"))),
        })
        .transpose()?;
    Ok(Item::McpCall(ServerCall {
        id: mint::id("mcp"),
        status,
        server_label: label,
        name: fields.required_text("name")?,
        arguments: fields.required_any_text("arguments")?,
        output: fields.text("output")?,
        error,
        approval_request_id: None,
    }))
}
