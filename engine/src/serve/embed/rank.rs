//! `POST /score` and `POST /rerank`: how well texts fit each other, in vLLM's and Jina's shapes.
//!
//! A model with one class reads both texts at once; an embedding model reads each by itself, and the
//! score is the cosine of the two vectors.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::HeaderMap;
use serde_json::{Value, json};
use strata_hop::Fault;

use super::super::members::{Members, wrong};
use super::input::{Text, bounded, check, encode};
use super::{classify, envelope, run, usage};
use crate::embed::Embedder;
use crate::model::vectors::VectorOutput;

/// The scores of pairs: one text with each of several, or several with as many others.
pub(super) async fn score(
    State(embedder): State<Arc<Embedder>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    check(&members, &embedder)?;
    let first = texts(&members, &["text_1", "queries"])?;
    let second = texts(&members, &["text_2", "documents", "items"])?;
    if first.len() != 1 && first.len() != second.len() {
        let message = format!(
            "`text_1` has {} texts and `text_2` {}: send one with many, or as many of both",
            first.len(),
            second.len()
        );
        return Err(Fault::invalid_param("text_1", message));
    }
    let (scores, tokens) = scores(&embedder, &headers, &members, &first, &second).await?;
    let item = |(index, score): (usize, &f32)| json!({"index": index, "object": "score", "score": score});
    let data: Vec<Value> = scores.iter().enumerate().map(item).collect();
    Ok(Json(envelope(&embedder, "score", tokens, &data)))
}

/// Documents by how well they fit a query, the best first.
pub(super) async fn rerank(
    State(embedder): State<Arc<Embedder>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    check(&members, &embedder)?;
    let Some(query) = members.text("query")? else {
        return Err(Fault::invalid_param("query", "`query` is missing: send a text"));
    };
    let documents = texts(&members, &["documents"])?;
    let returns = members.boolean("return_documents")?.unwrap_or(true);
    let top = members.whole("top_n", 0..=i64::MAX)?.unwrap_or(0) as usize;
    let (scores, tokens) = scores(&embedder, &headers, &members, &[query.to_owned()], &documents).await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Equal scores stay in the request's order.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(if top == 0 { usize::MAX } else { top });
    let result = |index: usize| {
        let mut result = json!({"index": index, "relevance_score": scores[index]});
        if returns {
            result["document"] = json!({"text": documents[index]});
        }
        result
    };
    Ok(Json(json!({
        "id": format!("rerank-{}", uuid::Uuid::now_v7().simple()),
        "model": embedder.card().name,
        "usage": usage(tokens),
        "results": order.into_iter().map(result).collect::<Vec<_>>(),
    })))
}

/// The texts of the first of these members that is there: one, an array, or objects with a `text`.
fn texts(members: &Members, names: &[&str]) -> Result<Vec<String>, Fault> {
    let name = names.iter().find(|name| members.get(name).is_some()).unwrap_or(&names[0]);
    let Some(value) = members.get(name) else {
        return Err(Fault::invalid_param(
            name,
            format!("`{name}` is missing: send a text, or an array of texts"),
        ));
    };
    let texts = match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, item)| match item.as_str().or_else(|| item["text"].as_str()) {
                Some(text) => Ok(text.to_owned()),
                None => Err(wrong(&format!("{name}[{i}]"), "a text, or an object with a `text`", item)),
            })
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(name, "a text or an array of texts", other)),
    };
    bounded(name, texts.len())?;
    Ok(texts)
}

async fn scores(
    embedder: &Arc<Embedder>,
    headers: &HeaderMap,
    members: &Members,
    first: &[String],
    second: &[String],
) -> Result<(Vec<f32>, usize), Fault> {
    let pairs = second.iter().enumerate().map(|(i, text)| (&first[i.min(first.len() - 1)], text));
    match &embedder.info().output {
        VectorOutput::Classes { labels } if labels.len() == 1 => {
            let texts = pairs.map(|(a, b)| Text::Pair(a.clone(), b.clone())).collect();
            let inputs = encode(embedder, members, texts, "documents").await?;
            let (vectors, tokens) = run(embedder, headers, inputs).await?;
            Ok((vectors.iter().map(|scores| classify::probabilities(scores)[0]).collect(), tokens))
        }
        VectorOutput::Classes { labels } => Err(Fault::invalid(format!(
            "the model `{}` has {} classes, and a score needs a model with one, or with embeddings",
            embedder.card().name,
            labels.len()
        ))),
        VectorOutput::Embedding(_) => {
            // A text that stands in several pairs is read once.
            let mut places: HashMap<&str, usize> = HashMap::new();
            let mut distinct = Vec::new();
            for text in first.iter().chain(second) {
                places.entry(text).or_insert_with(|| {
                    distinct.push(Text::Words(text.clone()));
                    distinct.len() - 1
                });
            }
            let inputs = encode(embedder, members, distinct, "documents").await?;
            let (vectors, tokens) = run(embedder, headers, inputs).await?;
            let vector = |text: &String| &vectors[places[text.as_str()]];
            Ok((pairs.map(|(a, b)| cosine(vector(a), vector(b))).collect(), tokens))
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_does_not_depend_on_the_length() {
        assert!((cosine(&[1.0, 2.0], &[3.0, 6.0]) - 1.0).abs() < 1e-6);
        assert!(cosine(&[1.0, 0.0], &[0.0, 5.0]).abs() < 1e-6);
        assert!(cosine(&[0.0, 0.0], &[0.0, 5.0]).abs() < 1e-6);
    }
}
