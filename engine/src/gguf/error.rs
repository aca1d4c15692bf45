//! What can be wrong with a GGUF file.

/// What is wrong with a GGUF file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// Another kind of file.
    #[error("not a GGUF file: it begins with {found:?}, not \"GGUF\"")]
    NotGguf {
        /// Its first bytes, readable.
        found: String,
    },
    /// Written on a big-endian machine.
    #[error("a big-endian GGUF file: convert it with gguf_convert_endian.py")]
    BigEndian,
    /// A version of the format that is not read.
    #[error("GGUF version {0} is not supported, only 2 and 3: convert the model again")]
    Version(u32),
    /// The file ends inside the header.
    #[error("truncated: the file ends at byte {len}, inside {what}; download it again")]
    Truncated {
        /// Length of the file.
        len: u64,
        /// What is being read.
        what: String,
    },
    /// The file ends inside a tensor's data.
    #[error(
        "truncated: the file ends at byte {len}, but tensor `{tensor}` takes bytes {begin} to {end}; \
         download it again"
    )]
    TensorTruncated {
        /// Length of the file.
        len: u64,
        /// The first tensor that is cut.
        tensor: String,
        /// Where it begins.
        begin: u64,
        /// Where it ends.
        end: u64,
    },
    /// A number in the header that cannot be true.
    #[error("damaged: {what} at byte {at}")]
    Damaged {
        /// Where.
        at: u64,
        /// What was read.
        what: String,
    },
    /// Two keys or tensors of one name.
    #[error("damaged: {what} `{name}` appears twice")]
    Duplicate {
        /// `key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A tensor in a format that is not read.
    #[error("tensor `{tensor}` has the type {kind}, which is not supported; supported are {supported}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The type, by name where it has one.
        kind: String,
        /// The types that are read.
        supported: String,
    },
    /// A tensor whose shape cannot be.
    #[error("tensor `{tensor}` {problem}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that is needed.
    #[error("the metadata key `{0}` is missing")]
    MissingKey(String),
    /// A key with a value of another kind.
    #[error("the metadata key `{key}` should be {expected}, but is {found}")]
    WrongValue {
        /// The key.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}
