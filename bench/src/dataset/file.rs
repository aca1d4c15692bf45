//! Prompts from a file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use strata_engine::tokenizer::Tokenizer;

use super::{Prompt, Request};
use crate::Random;

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the prompts in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
}

#[derive(Deserialize)]
struct CustomLine {
    prompt: PromptField,
    #[serde(alias = "output_len")]
    output_tokens: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
}

/// vLLM's `custom`: one JSON object a line with `prompt`, a text or token ids, and `output_tokens`, for
/// which `output_len` stands where it is given. With fewer lines than `count` they are sent again from
/// the first on.
pub fn custom(path: &Path, count: usize, output_len: Option<usize>) -> Result<Vec<Request>, FileError> {
    let mut requests = Vec::new();
    for (number, line) in read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |problem: String| malformed(path, format!("line {}: {problem}", number + 1));
        let line: CustomLine = serde_json::from_str(line).map_err(|e| at(e.to_string()))?;
        let output_len = output_len.or(line.output_tokens).filter(|tokens| *tokens > 0).ok_or_else(|| {
            at("it has no `output_tokens` of at least 1, and --custom-output-len is not given".into())
        })?;
        let prompt = match line.prompt {
            PromptField::Text(text) => Prompt::Text(text),
            PromptField::Tokens(tokens) => Prompt::Tokens(tokens),
        };
        requests.push(Request { prompt, output_len });
    }
    repeated(path, &requests, count)
}

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(default)]
    value: String,
}

/// vLLM's `sharegpt`: a JSON list of conversations, in random order. The first turn is the prompt; as
/// much is generated as the second has tokens, or `output_len`. As in vLLM, what has fewer than 4 tokens
/// on either side, a prompt over 1,024 or over 2,048 in all is left out.
pub fn sharegpt(
    path: &Path,
    count: usize,
    output_len: Option<usize>,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<Vec<Request>, FileError> {
    let mut conversations: Vec<Conversation> =
        serde_json::from_str(&read(path)?).map_err(|e| malformed(path, e.to_string()))?;
    Random::new(seed).shuffle(&mut conversations);
    let tokens = |text: &str| {
        tokenizer.encode(text, false).map(|ids| ids.len()).map_err(|e| malformed(path, e.to_string()))
    };
    let mut requests = Vec::new();
    for conversation in conversations {
        let [asked, answered, ..] = &conversation.conversations[..] else { continue };
        let input = tokens(&asked.value)?;
        let output = output_len.map_or_else(|| tokens(&answered.value), Ok)?;
        let short = input < 4 || (output_len.is_none() && output < 4);
        if short || input > 1024 || input + output > 2048 {
            continue;
        }
        requests.push(Request { prompt: Prompt::Text(asked.value.clone()), output_len: output });
        if requests.len() == count {
            break;
        }
    }
    repeated(path, &requests, count)
}

fn repeated(path: &Path, requests: &[Request], count: usize) -> Result<Vec<Request>, FileError> {
    if requests.is_empty() {
        return Err(malformed(path, "it has no prompt that can be sent".into()));
    }
    Ok(requests.iter().cycle().take(count).cloned().collect())
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

fn malformed(path: &Path, problem: String) -> FileError {
    FileError::Malformed { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, count: usize, output_len: Option<usize>) -> Result<Vec<Request>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, text).unwrap();
        custom(&path, count, output_len)
            .map_err(|e| e.to_string().replace(folder.path().to_str().unwrap(), ""))
    }

    #[test]
    fn lines_are_prompts_and_are_repeated() {
        let drawn =
            with("{\"prompt\": \"a\", \"output_tokens\": 3}\n\n{\"prompt\": [1, 2]}\n", 3, Some(7)).unwrap();
        let text = Request { prompt: Prompt::Text("a".into()), output_len: 7 };
        assert_eq!(
            drawn,
            [text.clone(), Request { prompt: Prompt::Tokens(vec![1, 2]), output_len: 7 }, text]
        );
        assert_eq!(with("{\"prompt\": \"a\", \"output_tokens\": 3}", 1, None).unwrap()[0].output_len, 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        insta::assert_snapshot!(with("{\"prompt\": \"a\"}", 1, None).unwrap_err(), @"/p.jsonl: line 1: it has no `output_tokens` of at least 1, and --custom-output-len is not given");
        insta::assert_snapshot!(with("\n", 1, Some(1)).unwrap_err(), @"/p.jsonl: it has no prompt that can be sent");
        assert!(with("{\"prompt\": 1}", 1, Some(1)).unwrap_err().starts_with("/p.jsonl: line 1: "));
    }
}
