//! What a model that reads texts gives for each: one vector, or scores of classes.

/// What becomes of the last layer's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VectorOutput {
    /// One vector for a text.
    Embedding(Embedding),
    /// A score for each class.
    Classes {
        /// Their names, in order.
        labels: Vec<String>,
    },
}

/// How a text's rows become its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// How the rows become one.
    pub pooling: Pooling,
    /// Whether it is scaled to the length one.
    pub normalise: bool,
}

/// How a text's rows become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    First,
    /// The last: of a decoder the only one that sees the whole text.
    Last,
}

impl VectorOutput {
    /// Length of the vector that one text gives from rows of this width.
    pub fn width(&self, hidden: usize) -> usize {
        match self {
            Self::Embedding(_) => hidden,
            Self::Classes { labels } => labels.len(),
        }
    }
}

/// Scales a vector to the length one; a vector of zeros stays one.
pub(crate) fn normalise(vector: &mut [f32]) {
    // In 64 bits, and never by zero.
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    for x in vector {
        *x = (f64::from(*x) / length) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_gets_the_length_one_unless_it_has_none() {
        let (mut long, mut zero) = ([3.0, -4.0], [0.0, 0.0]);
        normalise(&mut long);
        normalise(&mut zero);
        assert_eq!((long, zero), ([0.6, -0.8], [0.0, 0.0]));
    }
}
