//! `POST /classify`, in vLLM's shape.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::HeaderMap;
use serde_json::{Value, json};
use strata_hop::Fault;

use super::super::members::Members;
use super::{envelope, input, needs_classes, run_input};
use crate::embed::Embedder;

/// The classes' probabilities for texts, and the likeliest.
pub(super) async fn create(
    State(embedder): State<Arc<Embedder>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    input::check(&members, &embedder)?;
    let labels = needs_classes(&embedder)?;
    let (vectors, tokens) = run_input(&embedder, &headers, &members).await?;
    let item = |(index, scores): (usize, &Vec<f32>)| {
        let probs = probabilities(scores);
        let likeliest = probs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        json!({"index": index, "label": labels[likeliest], "probs": probs, "num_classes": labels.len()})
    };
    let data: Vec<Value> = vectors.iter().enumerate().map(item).collect();
    Ok(Json(envelope(&embedder, "classify", tokens, &data)))
}

/// One class: the logistic function of its score. Several: the softmax.
pub(super) fn probabilities(scores: &[f32]) -> Vec<f32> {
    if let [score] = scores {
        return vec![1.0 / (1.0 + (-score).exp())];
    }
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_a_sigmoid_or_a_softmax() {
        assert_eq!(probabilities(&[0.0]), [0.5]);
        assert_eq!(probabilities(&[1000.0, 1000.0]), [0.5, 0.5]);
        assert!((probabilities(&[1.0, 2.0, 3.0]).iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
