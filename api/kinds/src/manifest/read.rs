//! Reads a folder.

use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::folder::FOLDER;
use super::{Folder, ObjectRef, Problem, ProblemReason, Source};
use crate::schema::Kind;
use crate::unbuilt::{self, Place};
use crate::validate::{self, FieldError};
use crate::yaml::{self, Node};
use crate::{ModelDeployment, NAMESPACE, QuotaPolicy, Tenant, suggest};

/// Largest file that is read.
pub(super) const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Reads all `*.yaml`, `*.yml` and `*.json` directly in a folder, in the order of their names.
pub fn load(folder: &Path) -> Folder {
    let about_folder = |message: String| Problem {
        file: folder.display().to_string(),
        line: None,
        object: None,
        reason: ProblemReason::Unreadable,
        field: Some(FOLDER.to_owned()),
        message,
    };
    let names = match names(folder) {
        Ok(names) => names,
        Err(error) => {
            let message = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "does not exist: name a folder with manifests, such as examples/quickstart".to_owned()
                }
                std::io::ErrorKind::NotADirectory => "is a file: name the folder that it is in".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            return Folder { problems: vec![about_folder(message)], ..Folder::default() };
        }
    };
    if names.is_empty() {
        let message =
            "has no *.yaml, *.yml or *.json: add a ModelDeployment (see examples/quickstart/model.yaml)";
        return Folder { problems: vec![about_folder(message.to_owned())], ..Folder::default() };
    }
    let mut texts = Vec::new();
    let mut unreadable = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let read = match std::fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => continue,
            Ok(meta) if meta.len() > MAX_FILE_BYTES => {
                Err(format!("has {} bytes, and may have at most {MAX_FILE_BYTES}", meta.len()))
            }
            Ok(_) => std::fs::read(&path)
                .map_err(|e| format!("cannot be read: {e}"))
                .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        match read {
            Ok(text) => texts.push((name, text)),
            Err(message) => unreadable.push(Problem {
                file: name,
                line: None,
                object: None,
                reason: ProblemReason::Unreadable,
                field: None,
                message,
            }),
        }
    }
    let mut read = from_texts(texts);
    read.problems.splice(0..0, unreadable);
    read
}

/// The names of a folder's manifests, in order.
pub(super) fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && is_manifest(name))
        .collect();
    names.sort();
    Ok(names)
}

fn is_manifest(name: &str) -> bool {
    Path::new(name)
        .extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Reads the texts of files, each with its name.
pub fn from_texts(texts: Vec<(String, String)>) -> Folder {
    let mut reader = Reader::default();
    for (file, text) in texts {
        let is_json = file.rsplit('.').next().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        if is_json {
            match yaml::json(&text) {
                Ok(node) => reader.document(&file, &node),
                Err(error) => reader.syntax(&file, "JSON", &error),
            }
            continue;
        }
        for document in yaml::documents(&text) {
            match document.parse() {
                Ok(Some(node)) => reader.document(&file, &node),
                Ok(None) => {}
                Err(mut error) => {
                    error.line = error.line.or_else(|| Some(document.line()));
                    reader.syntax(&file, "YAML", &error);
                }
            }
        }
    }
    reader.folder
}

#[derive(Default)]
struct Reader {
    folder: Folder,
}

/// One object being read: where it stands and what it is called.
struct Site<'a> {
    file: &'a str,
    node: &'a Node,
    object: Option<ObjectRef>,
}

impl Reader {
    fn syntax(&mut self, file: &str, format: &str, error: &yaml::SyntaxError) {
        self.folder.problems.push(Problem {
            file: file.to_owned(),
            line: error.line,
            object: None,
            reason: ProblemReason::Syntax,
            field: None,
            message: format!("is not {format}: {}", error.message),
        });
    }

    fn refuse(
        &mut self,
        site: &Site<'_>,
        reason: ProblemReason,
        errors: impl IntoIterator<Item = FieldError>,
    ) {
        let problems = errors.into_iter().map(|error| Problem {
            file: site.file.to_owned(),
            line: Some(site.node.line_of(&error.path)).filter(|l| *l > 0),
            object: site.object.clone(),
            reason,
            field: Some(error.path).filter(|p| !p.is_empty()),
            message: error.message,
        });
        self.folder.problems.extend(problems);
    }

    fn document(&mut self, file: &str, node: &Node) {
        let value = node.value();
        if value.get("kind").and_then(Value::as_str) == Some("List")
            && let Some(items) = node.list("items")
        {
            for item in &items {
                self.object(file, item, item.value());
            }
            return;
        }
        self.object(file, node, value);
    }

    fn object(&mut self, file: &str, node: &Node, mut value: Value) {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (api, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let object = match (&kind, &name) {
            (Some(kind), Some(name)) => Some(ObjectRef { kind: kind.clone(), name: name.clone() }),
            _ => None,
        };
        let site = Site { file, node, object };
        let known = "ModelDeployment, Tenant and QuotaPolicy of strata.dev/v1alpha1, and Secret of v1";
        let at = |path: &str, message: String| [FieldError { path: path.to_owned(), message }];
        let Value::Object(fields) = &mut value else {
            let message =
                format!("is not an object: a manifest has apiVersion, kind, metadata and spec ({known})");
            return self.refuse(&site, ProblemReason::UnknownKind, at("", message));
        };
        let Some(kind) = kind else {
            let message = format!("is missing or not a string: the kinds here are {known}");
            return self.refuse(&site, ProblemReason::UnknownKind, at("kind", message));
        };
        let wanted_api = if kind == "Secret" { "v1".to_owned() } else { Kind::api_version() };
        let strata = Kind::named(&kind);
        if strata.is_none() && kind != "Secret" {
            let kinds = ["ModelDeployment", "Tenant", "QuotaPolicy", "Secret"];
            let meant = suggest::nearest(&kind, kinds)
                .map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
            let message = format!("is {kind}, which does not belong here: the kinds here are {known}{meant}");
            return self.refuse(&site, ProblemReason::UnknownKind, at("kind", message));
        }
        if api.as_deref() != Some(&wanted_api) {
            let message = format!("must be {wanted_api} for {kind}");
            return self.refuse(&site, ProblemReason::UnknownKind, at("apiVersion", message));
        }
        if let Err(error) = metadata(fields) {
            return self.refuse(&site, ProblemReason::Invalid, [error]);
        }
        // A host writes no status into the folder; one that was exported with an object is stale.
        fields.remove("status");
        let Some(strata) = strata else { return self.secret(&site, value) };
        let errors = validate::validate(strata, &value);
        if !errors.is_empty() {
            return self.refuse(&site, ProblemReason::Invalid, errors);
        }
        match strata {
            Kind::ModelDeployment => {
                let object: Option<ModelDeployment> = self.typed(&site, value);
                let object = object.and_then(|o| {
                    self.built(&site, unbuilt::model_deployment(&o.spec, Place::Host)).then_some(o)
                });
                self.folder.models.extend(object);
            }
            Kind::Tenant => {
                let object: Option<Tenant> = self.typed(&site, value);
                self.folder.tenants.extend(object);
            }
            Kind::QuotaPolicy => {
                let object: Option<QuotaPolicy> = self.typed(&site, value);
                let object =
                    object.and_then(|o| self.built(&site, unbuilt::quota_policy(&o.spec)).then_some(o));
                self.folder.policies.extend(object);
            }
        }
    }

    /// The object as its type, if its name is still free.
    fn typed<T: DeserializeOwned>(&mut self, site: &Site<'_>, value: Value) -> Option<T> {
        let object = site.object.clone()?;
        if let Some(first) = self.folder.sources.get(&object) {
            let message = format!("stands in {}:{} already: remove one or rename it", first.file, first.line);
            self.refuse(
                site,
                ProblemReason::Duplicate,
                [FieldError { path: "metadata.name".to_owned(), message }],
            );
            return None;
        }
        match serde_json::from_value(value) {
            Ok(typed) => {
                let source = Source { file: site.file.to_owned(), line: site.node.line_of("") };
                self.folder.sources.insert(object, source);
                Some(typed)
            }
            Err(error) => {
                let message = format!("is not as its kind has it: {error}");
                self.refuse(site, ProblemReason::Invalid, [FieldError { path: String::new(), message }]);
                None
            }
        }
    }

    fn built(&mut self, site: &Site<'_>, unbuilt: Vec<FieldError>) -> bool {
        if unbuilt.is_empty() {
            return true;
        }
        if let Some(object) = &site.object {
            self.folder.sources.remove(object);
        }
        self.refuse(site, ProblemReason::NotBuilt, unbuilt);
        false
    }

    fn secret(&mut self, site: &Site<'_>, value: Value) {
        let is_base64 = |v: &Value| serde_json::from_value::<ByteString>(v.clone()).is_ok();
        if let Some((key, _)) =
            value.get("data").and_then(Value::as_object).and_then(|d| d.iter().find(|(_, v)| !is_base64(v)))
        {
            let message = "must be base64: or write plain text under `stringData`".to_owned();
            return self.refuse(
                site,
                ProblemReason::Invalid,
                [FieldError { path: format!("data.{key}"), message }],
            );
        }
        let Some(mut secret) = self.typed::<Secret>(site, value) else { return };
        if let Some(plain) = secret.string_data.take() {
            let data = secret.data.get_or_insert_default();
            data.extend(plain.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))));
        }
        self.folder.secrets.push(secret);
    }
}

/// Checks `metadata`, of which the definitions say nothing, and fills in the namespace.
fn metadata(fields: &mut Map<String, Value>) -> Result<(), FieldError> {
    let wrong =
        |path: &str, message: &str| Err(FieldError { path: path.to_owned(), message: message.to_owned() });
    let Some(Value::Object(metadata)) = fields.get_mut("metadata") else {
        return wrong("metadata.name", "is missing: give the object a name");
    };
    match metadata.get("name") {
        Some(Value::String(name)) if is_object_name(name) => {}
        Some(Value::String(_)) => {
            return wrong(
                "metadata.name",
                "must be lower-case letters, digits, '-' and '.', at most 253 characters",
            );
        }
        Some(_) => return wrong("metadata.name", "must be a string: put it in quotes"),
        None => return wrong("metadata.name", "is missing: give the object a name"),
    }
    for key in ["labels", "annotations"] {
        match metadata.get(key) {
            None => {}
            Some(Value::Object(map)) if map.values().all(Value::is_string) => {}
            Some(_) => {
                return wrong(
                    &format!("metadata.{key}"),
                    "must be a mapping of strings: put values in quotes",
                );
            }
        }
    }
    let known = [
        "name",
        "namespace",
        "labels",
        "annotations",
        "uid",
        "generation",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
    ];
    if let Some(unknown) = metadata.keys().find(|k| !known.contains(&k.as_str())) {
        let meant = suggest::nearest(unknown, known)
            .map_or_else(|| "remove it".to_owned(), |meant| format!("did you mean `{meant}`?"));
        return wrong(&format!("metadata.{unknown}"), &format!("is not a field: {meant}"));
    }
    match metadata.get("namespace") {
        None => {
            metadata.insert("namespace".to_owned(), NAMESPACE.into());
        }
        Some(Value::String(namespace)) if namespace == NAMESPACE => {}
        Some(_) => {
            return wrong("metadata.namespace", "must be `strata` or absent: a folder is one namespace");
        }
    }
    Ok(())
}

fn is_object_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 253 && name.chars().all(inner) && edge(name.chars().next()) && edge(name.chars().last())
}
