//! Scaling of the rotary frequencies, as transformers names it.

use std::f64::consts::PI;

use serde::Deserialize;

/// `rope_scaling`, or `rope_parameters` since transformers 5.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Divisors of the `head_dim / 2` frequencies; empty when they stay as they are.
pub(super) fn factors(
    parameters: Option<&RopeParameters>,
    theta: f64,
    head_dim: usize,
) -> Result<Vec<f32>, String> {
    let Some(p) = parameters else { return Ok(Vec::new()) };
    let need = |value: Option<f64>, key: &str| value.ok_or_else(|| format!("rotary scaling lacks `{key}`"));
    match p.rope_type.as_deref().unwrap_or("default") {
        "default" => Ok(Vec::new()),
        "linear" => Ok(vec![need(p.factor, "factor")? as f32; head_dim / 2]),
        "llama3" => {
            let factor = need(p.factor, "factor")?;
            let low = need(p.low_freq_factor, "low_freq_factor")?;
            let high = need(p.high_freq_factor, "high_freq_factor")?;
            let context = need(p.original_max_position_embeddings, "original_max_position_embeddings")?;
            let one = |i: usize| {
                let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
                llama3_factor(2.0 * PI / frequency, factor, low, high, context)
            };
            Ok((0..head_dim / 2).map(one).collect())
        }
        other => Err(format!(
            "rotary scaling of the type `{other}` is not supported; `default`, `linear` and `llama3` are"
        )),
    }
}

/// Waves longer than the old context are stretched in full, short ones not at all, those between in
/// part.
fn llama3_factor(wavelength: f64, factor: f64, low: f64, high: f64, context: f64) -> f32 {
    if wavelength < context / high {
        return 1.0;
    }
    if wavelength > context / low {
        return factor as f32;
    }
    let smooth = (context / wavelength - low) / (high - low);
    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Factors of 1 and of the whole are exact.
mod tests {
    use super::*;

    #[test]
    fn llama3_stretches_long_waves_only() {
        let llama_3_2 = RopeParameters {
            rope_type: Some("llama3".into()),
            factor: Some(32.0),
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_position_embeddings: Some(8192.0),
            ..RopeParameters::default()
        };
        let factors = factors(Some(&llama_3_2), 500_000.0, 64).unwrap();
        // The wave of pair i is 2π × 500000^(i/32) long: below 8192 / 4 for i < 14.1, above 8192 for i > 17.5.
        assert!(factors[..15].iter().all(|f| *f == 1.0), "{factors:?}");
        assert!(factors[18..].iter().all(|f| *f == 32.0), "{factors:?}");
        assert!(factors.is_sorted());
    }

    #[test]
    fn an_unknown_type_and_a_missing_key_are_named() {
        let of = |kind: &str| RopeParameters { rope_type: Some(kind.into()), ..RopeParameters::default() };
        insta::assert_snapshot!(
            factors(Some(&of("yarn")), 1e4, 64).unwrap_err(),
            @"rotary scaling of the type `yarn` is not supported; `default`, `linear` and `llama3` are"
        );
        insta::assert_snapshot!(factors(Some(&of("linear")), 1e4, 64).unwrap_err(), @"rotary scaling lacks `factor`");
    }
}
