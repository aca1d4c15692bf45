//! A server-side tool that evaluates arithmetic exactly: models guess at sums, and a wrong total is
//! worse than none.

mod expression;
mod ratio;

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;

use crate::tool::{Definition, ServerTool, ToolError};

/// `{"type": "calculator"}`.
pub(crate) struct Calculator;

#[derive(Deserialize)]
struct Arguments {
    expression: String,
}

impl ServerTool for Calculator {
    fn kind(&self) -> &'static str {
        "calculator"
    }

    fn definition(&self) -> Definition {
        Definition {
            name: "calculator".to_owned(),
            description: "Evaluates an arithmetic expression exactly. Operators: + - * / % (remainder) ^ \
                          (whole power), parentheses. Functions: abs, floor, ceil, round(x) or \
                          round(x, digits), min, max. Use it for every calculation."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {"expression": {
                    "type": "string", "description": "such as (19.99 * 3 + 4.5) / 2"
                }},
                "required": ["expression"],
                "additionalProperties": false,
            }),
        }
    }

    fn call<'a>(&'a self, arguments: &'a str) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async move {
            let arguments: Arguments = serde_json::from_str(arguments).map_err(|error| {
                ToolError(format!("the arguments must be {{\"expression\": \"…\"}}: {error}"))
            })?;
            expression::evaluate(&arguments.expression)
                .map(|value| value.to_string())
                .map_err(|error| ToolError(error.to_string()))
        })
    }
}
