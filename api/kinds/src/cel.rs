//! How rules get into the schema: `x-kubernetes-validations`, judged by the API server and, for a
//! folder, by [`crate::validate`].

use serde_json::{Value, json};

/// One rule: an expression that must hold for the value (`self`), and what to tell the user who broke
/// it.
pub(crate) fn rule(rule: &str, message: &str) -> Value {
    json!([{ "rule": rule, "message": message }])
}

/// Several rules of `(expression, message)`.
pub(crate) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// A length of time, such as `500ms`, `1m` or `1h`.
pub(crate) fn duration() -> Value {
    rule(
        "self.matches('^[1-9][0-9]{0,5}(ms|s|m|h|d)$')",
        "must be a whole number with ms, s, m, h or d, such as 500ms or 5m",
    )
}

/// A number of replicas, or a share of them.
pub(crate) fn share() -> Value {
    rule(
        "string(self).matches('^[0-9]{1,4}$') ? self == int(string(self)) : string(self).matches('^(100|[0-9]{1,2})%$')",
        "must be a number of replicas, or a share of them from 0% to 100%",
    )
}

/// The window of a limit.
pub(crate) fn window() -> Value {
    rule("self.matches('^[1-9][0-9]{0,5}(s|m|h|d)$')", "must be a whole number with s, m, h or d, such as 1m")
}

/// An amount of money or a price.
pub(crate) fn decimal() -> Value {
    rule(
        "self.matches('^[0-9]{1,12}([.][0-9]{1,9})?$')",
        "must be a decimal number in quotes, such as \"0.25\"",
    )
}

/// A number of bytes.
pub(crate) fn bytes() -> Value {
    rule(
        "self.matches('^[1-9][0-9]{0,14}(k|M|G|T|Ki|Mi|Gi|Ti)?$')",
        "must be a number of bytes, with Ki, Mi, Gi or Ti if you like, such as 2Gi",
    )
}

/// The name of an HTTP header.
pub(crate) fn header() -> Value {
    rule(
        "self.matches('^[a-z0-9][a-z0-9-]{0,63}$')",
        "must be the name of a header in lower case, such as x-session-id",
    )
}

/// The name of an object that this one points to.
pub(crate) fn object_name() -> Value {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$')",
        "must be the name of an object: lower-case letters, digits, '-' and '.'",
    )
}

/// A name that requests ask for.
pub(crate) const MODEL_NAME: (&str, &str) = (
    "self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?$')",
    "must be letters, digits, '.', '_', ':', '/' and '-', begin and end with a letter or a digit, and have at most 128 characters",
);

/// The forms of a model URI, the same as `strata_wire::model_uri` parses: a test compares them.
const URI_FORMS: &[&str] = &[
    "(file://)?/[^ [:cntrl:]]*",
    "file://~/[^ [:cntrl:]]+",
    "hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9._+=,~()-]+)*(@[A-Za-z0-9][A-Za-z0-9._/-]{0,255})?",
    "oci://[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?",
    "s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*()+=,:@~-]+)+/?",
    "pvc://[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[^/ [:cntrl:]]+)*/?",
    "https://[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?/([A-Za-z0-9._~!$&()*+,;=:@%-]*/)*[A-Za-z0-9._~!$&()*+,;=:@%-]+([?][A-Za-z0-9._~!$&()*+,;=:@%/?-]*)?(#sha256=[0-9a-f]{64})?",
];

/// Where files of a model are.
pub(crate) fn uri() -> Value {
    let form: Vec<String> = URI_FORMS.iter().map(|form| format!("self.matches('^{form}$')")).collect();
    rules(&[
        (
            &form.join(" || "),
            "must be file://PATH, an absolute path, hf://OWNER/NAME, oci://REGISTRY/NAME:TAG, s3://BUCKET/PATH, pvc://CLAIM/PATH or https://HOST/PATH",
        ),
        ("!self.matches('/[.]{1,2}([/@?#]|$)')", "must have no . or .. in its path"),
    ])
}

/// A revision of a model.
pub(crate) fn revision() -> Value {
    rule(
        "self.matches('^[A-Za-z0-9_][A-Za-z0-9._/:-]*$') && !self.matches('/[.]{1,2}(/|$)')",
        "must be a branch, tag, commit or digest",
    )
}

/// A name with `*` for any run of characters.
pub(crate) fn glob() -> Value {
    rule("self.matches('^[A-Za-z0-9._:/*-]{1,128}$')", "must be a name, with * for any run of characters")
}

/// Names with `*` for any run of characters.
pub(crate) fn globs() -> Value {
    rule(
        "self.all(name, name.matches('^[A-Za-z0-9._:/*-]{1,128}$'))",
        "must be names of letters, digits and . _ : / -, with * for any run of characters",
    )
}
