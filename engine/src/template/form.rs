//! The forms in which models write their calls, and the marks around them.

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes and Qwen.
    #[default]
    Hermes,
    /// `{"name": …, "parameters": …}` as the answer's beginning, or after `<|python_tag|>`; several are
    /// parted by `;`.
    Llama3,
    /// `[TOOL_CALLS]` and an array of calls, or a name and its arguments.
    Mistral,
}

impl ToolFormat {
    /// The form of a model with this chat template.
    pub fn of_template(source: &str) -> Self {
        if source.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if source.contains("<|python_tag|>") || source.contains("\"parameters\": ") {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }

    /// The text that begins calls.
    pub fn opener(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }
}

/// The text that ends a call in the Hermes form.
pub(super) const CLOSE: &str = "</tool_call>";
