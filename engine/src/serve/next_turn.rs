//! What the next turn of a conversation begins with: the prompt, and the answer that was just given to it.
//!
//! The answer's blocks are in the cache, and a router knows them only by the text that the client will send
//! back. So the conversation with the answer in it is rendered and tokenised as the next turn's will be, and
//! its byte blocks are told of. Where that makes other tokens than were generated, these blocks are not in
//! the cache by those names, and nothing is said of them.

use std::sync::Arc;

use strata_wire::chat::Message;
use strata_wire::toplevel::TopLevel;

use super::chat::render;
use super::members::Members;
use super::messages::Tools;
use super::options::Options;
use super::speech::Said;
use crate::block::HashChain;
use crate::events;
use crate::runtime::Engine;

/// Stands for the question that follows: templates write a conversation's last answer in another way.
const QUESTION: &str = "?";

/// A conversation whose answer is in the making.
pub(super) struct NextTurn {
    engine: Arc<Engine>,
    members: Members,
    messages: Vec<Message>,
    tools: Option<Tools>,
    scope: Option<String>,
    answer: String,
    /// Whether all of the answer is text: of calls and reasoning, clients send back what they like.
    plain: bool,
}

impl NextTurn {
    /// `None` where nobody wants to know, or the next turn does not begin so.
    pub(super) fn of(
        engine: &Arc<Engine>,
        members: Members,
        messages: Vec<Message>,
        tools: Option<Tools>,
        options: &Options,
        adapted: bool,
    ) -> Option<Self> {
        let continues = members.get("continue_final_message").is_some_and(|value| value == true)
            || members.get("add_special_tokens").is_some_and(|value| value == true)
            || members.get("add_generation_prompt").is_some_and(|value| value == false);
        let told = engine.events().is_followed() && options.tokens.truncate.is_none();
        // An adapter may be unloaded, and its name given to another, before the answer is there.
        if !told || continues || options.n > 1 || adapted {
            return None;
        }
        let scope = options.cache_salt.clone();
        Some(Self {
            engine: Arc::clone(engine),
            members,
            messages,
            tools,
            scope,
            answer: String::new(),
            plain: true,
        })
    }

    /// Takes a piece of the answer.
    pub(super) fn hear(&mut self, said: &Said) {
        match said {
            Said::Text(text) => self.answer.push_str(text),
            Said::Reasoning(_) | Said::Call(_) | Said::Arguments(_) => self.plain = false,
        }
    }

    /// The answer is whole: tells of it in the background, for it takes a pass over the conversation.
    pub(super) fn tell(self) {
        if self.plain && !self.answer.is_empty() {
            tokio::task::spawn_blocking(move || {
                if self.said().is_none() {
                    tracing::debug!("the next turn of a conversation is not told of");
                }
            });
        }
    }

    fn said(mut self) -> Option<()> {
        let body = with_answer(self.members.body(), &self.answer)?;
        self.messages.push(Message::text("assistant", self.answer));
        self.messages.push(Message::text("user", QUESTION));
        let tools = self.tools.as_ref().map(|tools| tools.list.as_slice());
        let text = render(&self.engine, &self.members, &self.messages, tools).ok()?;
        let tokenizer = self.engine.tokenizer();
        let tokens = tokenizer.encode(&text, false).ok()?;
        let scope = self.scope.as_deref();
        let claims = events::claims(scope.unwrap_or_default(), &body, &text, &tokens, tokenizer);
        let mut chain = HashChain::new(scope);
        chain.extend(&tokens);
        self.engine.claim(claims, chain.hashes().to_vec());
        Some(())
    }
}

/// A chat's body with one message more.
fn with_answer(body: &[u8], answer: &str) -> Option<Vec<u8>> {
    let messages = TopLevel::scan(body).ok()?.get("messages")?.value_at.clone();
    let (before, after) = body.split_at(messages.end.checked_sub(1)?);
    let answer = serde_json::to_string(&Message::text("assistant", answer)).ok()?;
    Some([before, b",", answer.as_bytes(), after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_last_message() {
        let body = br#"{"messages": [{"role":"user","content":"a"} ], "model":"m"}"#;
        let with = with_answer(body, "b \"c\"").unwrap();
        let read: serde_json::Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(read["messages"][1], serde_json::json!({"role": "assistant", "content": "b \"c\""}));
        assert_eq!((read["messages"].as_array().unwrap().len(), &read["model"]), (2, &"m".into()));
        assert_eq!(with_answer(b"{}", "b"), None);
    }
}
