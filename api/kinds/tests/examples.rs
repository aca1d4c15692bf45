//! The examples are manifests that work.

use std::path::Path;

#[test]
fn every_example_is_good() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let folder = strata_kinds::manifest::load(&examples.join("quickstart"));
    assert_eq!(folder.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
    assert_eq!((folder.models.len(), folder.tenants.len(), folder.policies.len()), (1, 1, 1));
    assert_eq!(folder.models[0].spec.model.name, "smollm2-135m");
    assert!(folder.tenants[0].spec.lists_model("smollm2-135m"));
}
