//! What an operator says about speculative decoding, in vLLM's terms.

use serde::{Deserialize, Serialize};

/// Tokens that may be guessed at once.
const MAX_TOKENS: usize = 16;
/// Longest n-gram that may be looked up.
const MAX_LOOKUP: usize = 32;

/// How the tokens to come are guessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum SpeculativeConfig {
    /// By what followed the last tokens where they stood before, in the prompt or the answer.
    Ngram {
        /// Tokens guessed at once, 1 to 16.
        #[serde(default = "tokens")]
        num_speculative_tokens: usize,
        /// Longest run of last tokens that is looked for, at most 32.
        #[serde(default = "lookup_max")]
        prompt_lookup_max: usize,
        /// Shortest run that is looked for, from 1.
        #[serde(default = "lookup_min")]
        prompt_lookup_min: usize,
        /// Whether to guess only as far as it pays.
        #[serde(default = "yes")]
        adaptive: bool,
    },
    /// By a smaller model with the same vocabulary.
    DraftModel {
        /// Where it is, as for the model itself.
        model: String,
        /// Tokens guessed at once, 1 to 16.
        #[serde(default = "tokens")]
        num_speculative_tokens: usize,
        /// Whether to guess only as far as it pays.
        #[serde(default = "yes")]
        adaptive: bool,
    },
}

fn tokens() -> usize {
    4
}

fn lookup_max() -> usize {
    4
}

fn lookup_min() -> usize {
    2
}

fn yes() -> bool {
    true
}

impl SpeculativeConfig {
    /// Tokens guessed at once.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Ngram { num_speculative_tokens, .. } | Self::DraftModel { num_speculative_tokens, .. } => {
                *num_speculative_tokens
            }
        }
    }

    /// Whether guesses are made only as far as they pay.
    pub fn is_adaptive(&self) -> bool {
        match self {
            Self::Ngram { adaptive, .. } | Self::DraftModel { adaptive, .. } => *adaptive,
        }
    }

    /// What is out of range, in words.
    pub fn check(&self) -> Result<(), String> {
        let tokens = self.tokens();
        if !(1..=MAX_TOKENS).contains(&tokens) {
            return Err(format!("num_speculative_tokens must be from 1 to {MAX_TOKENS}, and it is {tokens}"));
        }
        if let Self::Ngram { prompt_lookup_max: max, prompt_lookup_min: min, .. } = self
            && !(1 <= *min && min <= max && *max <= MAX_LOOKUP)
        {
            return Err(format!(
                "prompt_lookup_min must be from 1 to prompt_lookup_max, and that at most {MAX_LOOKUP}; they are \
                 {min} and {max}"
            ));
        }
        Ok(())
    }
}

impl std::str::FromStr for SpeculativeConfig {
    type Err = String;

    /// Reads it from JSON, as on the command line.
    fn from_str(text: &str) -> Result<Self, String> {
        let config: Self = serde_json::from_str(text).map_err(|e| {
            format!(
                "{e}; expected JSON such as {{\"method\":\"ngram\",\"num_speculative_tokens\":4}} or \
                 {{\"method\":\"draft_model\",\"model\":\"/models/small.gguf\"}}"
            )
        })?;
        config.check().map(|()| config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_vllm_s_names_and_says_what_is_wrong() {
        let read = |text: &str| text.parse::<SpeculativeConfig>();
        assert_eq!(
            read(r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":3}"#),
            Ok(SpeculativeConfig::Ngram {
                num_speculative_tokens: 5,
                prompt_lookup_max: 3,
                prompt_lookup_min: 2,
                adaptive: true,
            })
        );
        let draft = SpeculativeConfig::DraftModel {
            model: "m.gguf".into(),
            num_speculative_tokens: 4,
            adaptive: true,
        };
        assert_eq!(read(r#"{"method":"draft_model","model":"m.gguf"}"#), Ok(draft));
        for (bad, why) in [
            (r#"{"method":"eagle"}"#, "unknown variant `eagle`"),
            (r#"{"method":"draft_model"}"#, "missing field `model`"),
            (r#"{"method":"ngram","depth":1}"#, "unknown field `depth`"),
            (r#"{"method":"ngram","num_speculative_tokens":17}"#, "from 1 to 16, and it is 17"),
            (r#"{"method":"ngram","prompt_lookup_min":5}"#, "they are 5 and 4"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
