//! OpenAI's error body, so that every SDK raises its own typed error.

use serde::{Deserialize, Serialize};

/// `{"error": {...}}`, the body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The only member.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// One sentence: what happened, where, and what to do about it.
    pub message: String,
    /// The class of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter at fault, if one is.
    #[serde(default)]
    pub param: Option<String>,
    /// A stable code for programs, such as `rate_limit_exceeded`.
    #[serde(default)]
    pub code: Option<String>,
}

/// The refusals and failures that Strata's layers produce, each with one status and one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: the request is wrong and must be changed.
    InvalidRequest,
    /// 401: no key, or one that is not known.
    InvalidApiKey,
    /// 403: the key is good but this endpoint or role is not its.
    PermissionDenied,
    /// 404: no such object, or none that the caller may see.
    NotFound,
    /// 404: no such model, or none that the caller may see.
    ModelNotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the client sent its request too slowly.
    RequestTimeout,
    /// 409: the object is in a state that forbids this.
    Conflict,
    /// 413: the body is larger than the limit.
    TooLarge,
    /// 431: the header section is larger than the limit.
    HeadTooLarge,
    /// 400: prompt and requested output exceed the model's context.
    ContextLengthExceeded,
    /// 429: a rate window is full; retry after `retry-after`.
    RateLimitExceeded,
    /// 429: a budget is spent; retrying before its next period is pointless.
    InsufficientQuota,
    /// 500: our fault.
    Internal,
    /// 501: known, but not built.
    NotImplemented,
    /// 502: the next layer failed in a way that it should not.
    BadGateway,
    /// 503: nothing can serve this now; retry.
    Overloaded,
    /// 504: the next layer did not answer in time.
    Timeout,
}

impl ErrorKind {
    /// The HTTP status of this kind.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded => 400,
            Self::InvalidApiKey => 401,
            Self::PermissionDenied => 403,
            Self::NotFound | Self::ModelNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::HeadTooLarge => 431,
            Self::RateLimitExceeded | Self::InsufficientQuota => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::BadGateway => 502,
            Self::Overloaded => 503,
            Self::Timeout => 504,
        }
    }

    /// OpenAI's `type` of this kind.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::RateLimitExceeded => "rate_limit_error",
            Self::InsufficientQuota => "insufficient_quota",
            Self::PermissionDenied => "permission_error",
            Self::Internal | Self::NotImplemented | Self::BadGateway | Self::Overloaded | Self::Timeout => {
                "server_error"
            }
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's `code` of this kind, where it has one.
    pub fn code(self) -> Option<&'static str> {
        Some(match self {
            Self::InvalidApiKey => "invalid_api_key",
            Self::ModelNotFound => "model_not_found",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::RateLimitExceeded => "rate_limit_exceeded",
            Self::InsufficientQuota => "insufficient_quota",
            Self::TooLarge => "request_too_large",
            Self::HeadTooLarge => "request_header_fields_too_large",
            Self::Overloaded => "overloaded",
            Self::NotImplemented => "not_implemented",
            Self::Timeout => "upstream_timeout",
            Self::BadGateway => "upstream_failed",
            _ => return None,
        })
    }

    /// Whether the same request may succeed when it is sent again.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimitExceeded | Self::Overloaded | Self::BadGateway | Self::Timeout | Self::Internal
        )
    }
}

impl ErrorBody {
    /// An error body of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            error: ErrorDetail {
                message: message.into(),
                kind: kind.type_name().to_owned(),
                param: None,
                code: kind.code().map(str::to_owned),
            },
        }
    }

    /// The same, naming the parameter at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.error.param = Some(param.into());
        self
    }

    /// The body as JSON bytes.
    pub fn to_bytes(&self) -> bytes::Bytes {
        serde_json::to_vec(self).map_or_else(|_| bytes::Bytes::from_static(b"{}"), bytes::Bytes::from)
    }
}
