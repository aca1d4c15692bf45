//! Rotary embedding, as transformers names it.

use serde::Deserialize;

use crate::model::rope::{Llama3Scaling, LongRope, Rope, RopeLayout, Yarn, long_rope_magnitude};
use crate::model::spec::MAX_HEAD_DIM;

/// `rope_scaling`, or `rope_parameters` since transformers 5.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RopeParameters {
    rope_type: Option<String>,
    /// What `rope_type` was called before; some files have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    /// Where kinds of layers differ, those of layers that see everything.
    pub(super) full_attention: Option<Box<RopeParameters>>,
    /// … and those of layers with a window.
    pub(super) sliding_attention: Option<Box<RopeParameters>>,
}

/// Contexts that a model was made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contexts {
    /// The longest.
    pub(super) longest: usize,
    /// The one before it was stretched, where the configuration itself says it.
    pub(super) original: Option<usize>,
}

/// The embedding that `parameters` describe, of the first `dims` numbers of a head.
pub(super) fn rope(
    parameters: Option<&RopeParameters>,
    theta: f64,
    dims: usize,
    contexts: Contexts,
) -> Result<Rope, String> {
    if dims > MAX_HEAD_DIM {
        return Err(format!("a head of {dims} rotated numbers is too wide"));
    }
    let plain = Rope::plain(theta as f32, RopeLayout::Halves, dims);
    let Some(p) = parameters else { return Ok(plain) };
    let need = |value: Option<f64>, key: &str| value.ok_or_else(|| format!("rotary scaling lacks `{key}`"));
    let factor = || need(p.factor, "factor");
    let original = p.original_max_position_embeddings.or(contexts.original.map(|n| n as f64));
    let original = || need(original, "original_max_position_embeddings");
    match p.rope_type.as_deref().or(p.old_type.as_deref()).unwrap_or("default") {
        "default" => Ok(plain),
        "linear" => Ok(Rope { factors: vec![factor()? as f32; dims / 2], ..plain }),
        "llama3" => {
            let scaling = Llama3Scaling {
                factor: factor()?,
                low: need(p.low_freq_factor, "low_freq_factor")?,
                high: need(p.high_freq_factor, "high_freq_factor")?,
                context: original()?,
            };
            Ok(Rope { factors: scaling.factors(theta, dims), ..plain })
        }
        "yarn" => {
            let yarn = Yarn {
                factor: factor()?,
                context: original().unwrap_or(contexts.longest as f64),
                fast: p.beta_fast.unwrap_or(Yarn::FAST),
                slow: p.beta_slow.unwrap_or(Yarn::SLOW),
                whole: p.truncate.unwrap_or(true),
            };
            let scaled = |scale: f64| 1.0 + scale * (Yarn::magnitude(yarn.factor) - 1.0);
            let magnitude = match (p.attention_factor, p.mscale, p.mscale_all_dim) {
                (Some(given), ..) => given,
                (None, Some(one), Some(all)) => scaled(one) / scaled(all),
                _ => Yarn::magnitude(yarn.factor),
            };
            Ok(Rope { factors: yarn.factors(theta, dims), magnitude: magnitude as f32, ..plain })
        }
        // `su` is what Phi-3's first files call it.
        "longrope" | "su" => {
            let original = original()?;
            let list = |list: &Option<Vec<f32>>, key| {
                list.clone().ok_or_else(|| format!("rotary scaling lacks `{key}`"))
            };
            let stretched = p.factor.unwrap_or(contexts.longest as f64 / original);
            let magnitude = p.attention_factor.unwrap_or_else(|| long_rope_magnitude(stretched, original));
            Ok(Rope {
                factors: list(&p.short_factor, "short_factor")?,
                long: Some(LongRope {
                    beyond: original as usize,
                    factors: list(&p.long_factor, "long_factor")?,
                }),
                magnitude: magnitude as f32,
                ..plain
            })
        }
        other => Err(format!(
            "rotary scaling of the type `{other}` is not supported; `default`, `linear`, `llama3`, `yarn` \
             and `longrope` are"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_and_a_missing_key_are_named() {
        let contexts = Contexts { longest: 128, original: None };
        let refusal = |kind: &str| {
            let p = RopeParameters { old_type: Some(kind.into()), ..RopeParameters::default() };
            rope(Some(&p), 1e4, 64, contexts).unwrap_err()
        };
        insta::assert_snapshot!(
            refusal("dynamic"),
            @"rotary scaling of the type `dynamic` is not supported; `default`, `linear`, `llama3`, `yarn` and `longrope` are"
        );
        insta::assert_snapshot!(refusal("linear"), @"rotary scaling lacks `factor`");
        insta::assert_snapshot!(refusal("longrope"), @"rotary scaling lacks `original_max_position_embeddings`");
    }
}
