//! "Did you mean": the known name that is nearest to a mistyped one.

/// The nearest of `known` that a slip of the finger explains.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    known
        .into_iter()
        .map(|name| (distance(&typed, &name.to_lowercase()), name))
        .filter(|(distance, name)| {
            let length = name.chars().count();
            *distance <= if length <= 4 { 1 } else { (length / 4).max(2) }
        })
        .min_by_key(|(distance, name)| (*distance, *name))
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements that lead from one text to the other. Long texts count as
/// far apart.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_nothing_far_fetched() {
        let known = ["replicas", "model", "routing", "rollout"];
        assert_eq!(nearest("replica", known), Some("replicas"));
        assert_eq!(nearest("Model", known), Some("model"));
        assert_eq!(nearest("rotuing", known), Some("routing"));
        assert_eq!(nearest("max", ["min"]), None);
        assert_eq!(nearest("Deployment", ["ModelDeployment"]), None);
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("", known), None);
    }
}
