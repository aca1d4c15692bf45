//! The authorities as the Secret `strata-ca` holds them.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};
use strata_hop::tls::certificate;
use strata_hop::tls::credentials::{certificates, fits};

/// One authority. Its key is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Names it in the Secret: a hash of the certificate.
    pub id: String,
    /// The certificate, in PEM.
    pub certificate: String,
    /// The private key, in PEM; without it the authority can be trusted and cannot sign.
    pub key: Option<String>,
    /// Since when every Secret has it among the authorities to trust.
    pub trusted_since: Option<i64>,
    /// Since when nobody is named by it any more, though it signed once.
    pub unused_since: Option<i64>,
    /// First second in which it holds.
    pub not_before: i64,
    /// Last second in which it holds.
    pub not_after: i64,
    pub(super) der: Vec<u8>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id)
            .field("signs", &self.key.is_some())
            .field("trusted_since", &self.trusted_since)
            .field("unused_since", &self.unused_since)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Record {
    /// An authority of this certificate. `None` when it is none, or more than one. A key of another
    /// certificate is left out.
    pub fn new(certificate: &str, key: Option<&str>) -> Option<Self> {
        let [der] = &certificates(certificate.as_bytes())[..] else { return None };
        let (not_before, not_after) = certificate::validity(der)?;
        let key = key.filter(|key| fits(certificate.as_bytes(), key.as_bytes()));
        Some(Self {
            id: id_of(der),
            certificate: with_newline(certificate),
            key: key.map(with_newline),
            trusted_since: None,
            unused_since: None,
            not_before,
            not_after,
            der: der.to_vec(),
        })
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// Every sound authority in a Secret's data, the youngest first. Anything else in it is left out.
pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Vec<Record> {
    let text = |name: &str| data.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let time = |name: &str| text(name).and_then(|text| text.trim().parse().ok());
    let mut records: Vec<Record> = data
        .keys()
        .filter_map(|name| {
            let id = name.strip_suffix(".crt")?;
            let record = Record::new(text(name)?, text(&format!("{id}.key")))?;
            // Under another name it would be written a second time.
            (record.id == id).then(|| Record {
                trusted_since: time(&format!("{id}.trusted-since")),
                unused_since: time(&format!("{id}.unused-since")),
                ..record
            })
        })
        .collect();
    youngest_first(&mut records);
    records
}

/// The data of a Secret that holds these.
pub fn write(records: &[Record]) -> BTreeMap<String, Vec<u8>> {
    let mut data = BTreeMap::new();
    for record in records {
        let mut put = |suffix: &str, text: Option<String>| {
            if let Some(text) = text {
                data.insert(format!("{}.{suffix}", record.id), text.into_bytes());
            }
        };
        put("crt", Some(record.certificate.clone()));
        put("key", record.key.clone());
        put("trusted-since", record.trusted_since.map(|t| t.to_string()));
        put("unused-since", record.unused_since.map(|t| t.to_string()));
    }
    data
}

/// The PEM text that holders get: all of them, the youngest first.
pub fn bundle(records: &[Record]) -> String {
    records.iter().map(|record| record.certificate.as_str()).collect()
}

pub(super) fn youngest_first(records: &mut [Record]) {
    records.sort_by(|a, b| (b.not_before, &b.id).cmp(&(a.not_before, &a.id)));
}

fn with_newline(pem: &str) -> String {
    format!("{}\n", pem.trim_end())
}

fn id_of(der: &[u8]) -> String {
    let hash = Sha256::digest(der);
    hash[..8].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
