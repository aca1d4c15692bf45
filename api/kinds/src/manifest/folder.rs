//! What a folder holds, and what to go by while an edit is broken.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::Value;

use super::{ObjectRef, Problem, ProblemReason};
use crate::schema::Kind;
use crate::{ModelDeployment, QuotaPolicy, Tenant, validate};

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file, by its name in the folder.
    pub file: String,
    /// The line where the object begins.
    pub line: u32,
}

/// The good objects of a folder, in the order of their files, and what is wrong with the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folder {
    /// ModelDeployments.
    pub models: Vec<ModelDeployment>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// QuotaPolicies.
    pub policies: Vec<QuotaPolicy>,
    /// Secrets, with `stringData` merged into `data`.
    pub secrets: Vec<Secret>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Where each good object stands.
    pub sources: BTreeMap<ObjectRef, Source>,
}

impl Folder {
    /// An entry of a Secret as text. `None` when there is no such Secret or entry, or it is not text.
    pub fn secret_entry(&self, secret: &str, key: &str) -> Option<String> {
        let secret = self.secrets.iter().find(|s| s.name_any() == secret)?;
        String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
    }

    /// Whether it holds the object.
    pub fn has(&self, object: &ObjectRef) -> bool {
        self.sources.contains_key(object)
    }
}

/// What to go by after an edit: the objects of `next`, and those of `last` that the edit broke, so
/// that a typing error stops nothing that runs. An object that is gone from its file without an error
/// there is gone. A change of something that cannot be changed is refused here.
pub fn keep_last_good(last: &Folder, mut next: Folder) -> Folder {
    refuse_forbidden_changes(last, &mut next);
    let unreadable = |file: &str| {
        next.problems.iter().any(|p| {
            p.object.is_none()
                && p.file == file
                && matches!(p.reason, ProblemReason::Syntax | ProblemReason::Unreadable)
        })
    };
    let whole_folder = next.problems.iter().any(|p| {
        p.reason == ProblemReason::Unreadable && p.line.is_none() && p.field.as_deref() == Some(FOLDER)
    });
    let keep = |object: &ObjectRef| {
        let Some(source) = last.sources.get(object) else { return false };
        let broken = next.problems.iter().any(|p| p.object.as_ref() == Some(object));
        !next.has(object) && (broken || unreadable(&source.file) || whole_folder)
    };
    let kept: Vec<ObjectRef> = last.sources.keys().filter(|o| keep(o)).cloned().collect();
    for object in kept {
        let is = |kind: &str, name: String| object.kind == kind && object.name == name;
        next.models.extend(last.models.iter().find(|m| is("ModelDeployment", m.name_any())).cloned());
        next.tenants.extend(last.tenants.iter().find(|t| is("Tenant", t.name_any())).cloned());
        next.policies.extend(last.policies.iter().find(|p| is("QuotaPolicy", p.name_any())).cloned());
        next.secrets.extend(last.secrets.iter().find(|s| is("Secret", s.name_any())).cloned());
        if let Some(source) = last.sources.get(&object) {
            next.sources.insert(object, source.clone());
        }
    }
    next
}

/// The field that a problem of the folder as a whole names.
pub(super) const FOLDER: &str = "folder";

fn refuse_forbidden_changes(last: &Folder, next: &mut Folder) {
    let mut refused: Vec<(ObjectRef, Vec<validate::FieldError>)> = Vec::new();
    let mut check = |kind: Kind, name: String, new: Option<Value>, old: Option<Value>| {
        if let (Some(new), Some(old)) = (new, old) {
            let errors = validate::validate_update(kind, &new, &old);
            if !errors.is_empty() {
                refused.push((ObjectRef { kind: kind.name().to_owned(), name }, errors));
            }
        }
    };
    for new in &next.models {
        let old = last.models.iter().find(|m| m.name_any() == new.name_any());
        check(
            Kind::ModelDeployment,
            new.name_any(),
            serde_json::to_value(new).ok(),
            old.and_then(|o| serde_json::to_value(o).ok()),
        );
    }
    for (object, errors) in refused {
        let Some(source) = next.sources.remove(&object) else { continue };
        next.models.retain(|m| m.name_any() != object.name);
        next.problems.extend(errors.into_iter().map(|error| Problem {
            file: source.file.clone(),
            line: Some(source.line),
            object: Some(object.clone()),
            reason: ProblemReason::Invalid,
            field: Some(error.path).filter(|p| !p.is_empty()),
            message: error.message,
        }));
    }
}
