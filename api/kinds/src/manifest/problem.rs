//! What is wrong with a manifest.

use std::fmt;

/// An object by kind and name. All objects of a folder are in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind, such as `Tenant`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Why an object, a document or a file is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemReason {
    /// The folder or file cannot be read, or there is nothing in it.
    Unreadable,
    /// Not YAML.
    Syntax,
    /// Not a kind that belongs here.
    UnknownKind,
    /// The schema or a rule refuses it.
    Invalid,
    /// It asks for something that is not built yet.
    NotBuilt,
    /// Another object has the same kind and name.
    Duplicate,
}

/// Something wrong in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, by its name in the folder; the folder itself where no file is to blame.
    pub file: String,
    /// The line, where it is known.
    pub line: Option<u32>,
    /// The object, where it is known.
    pub object: Option<ObjectRef>,
    /// Why.
    pub reason: ProblemReason,
    /// The field, such as `spec.model.uri`.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        match &self.field {
            Some(field) => write!(f, ": `{field}` {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}
