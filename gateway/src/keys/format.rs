//! `sk-strata-<id>_<secret>` and its hash at rest.

use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// What every key begins with.
pub const PREFIX: &str = "sk-strata-";
/// What every stored hash begins with: the version of the scheme.
pub const HASH_PREFIX: &str = "v1$";
const ID_BYTES: usize = 12;
const SECRET_BYTES: usize = 32;
/// Longest text that is looked at as a key.
const MAX_KEY: usize = 512;

/// The hash of a key at rest: SHA-256 over the id's text and the secret's text, one after the other.
/// The secret has 256 random bits, so no slow hash is needed.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(redacted)")
    }
}

impl KeyHash {
    /// The hash of this id and secret.
    pub fn of(id: &str, secret: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(id.as_bytes());
        hasher.update(secret.as_bytes());
        Self(hasher.finalize().into())
    }

    /// Reads `v1$` and 64 hexadecimal digits. `None` when it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.trim().strip_prefix(HASH_PREFIX)?;
        if hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// `v1$` and 64 hexadecimal digits.
    pub fn to_text(self) -> String {
        format!("{HASH_PREFIX}{}", hex(&self.0))
    }

    /// Whether the two are equal, in the same time wherever they differ.
    pub fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Splits a presented key into id and secret. `None` when it does not have the form of a key.
pub fn split(key: &str) -> Option<(&str, &str)> {
    if key.len() > MAX_KEY {
        return None;
    }
    let (id, secret) = key.strip_prefix(PREFIX)?.split_once('_')?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (plain(id) && plain(secret)).then_some((id, secret))
}

/// A new key: what is shown once and what is kept.
pub struct Minted {
    /// The public id.
    pub id: String,
    /// The whole key. Shown to its owner once.
    pub text: String,
    /// What is stored.
    pub hash: KeyHash,
}

/// Makes a key with a new id.
pub fn mint() -> Result<Minted, getrandom::Error> {
    let mut id = [0; ID_BYTES];
    getrandom::fill(&mut id)?;
    mint_for(&base32(&id))
}

/// Makes a key with a new secret for an id that exists.
pub fn mint_for(id: &str) -> Result<Minted, getrandom::Error> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret)?;
    let secret = base32(&secret);
    Ok(Minted { id: id.to_owned(), text: format!("{PREFIX}{id}_{secret}"), hash: KeyHash::of(id, &secret) })
}

/// RFC 4648's base32 in lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let (mut text, mut bits, mut held) = (String::new(), 0u32, 0u32);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(ALPHABET[(bits >> held) as usize & 31]));
        }
    }
    if held > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - held)) as usize & 31]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_key_splits_into_what_its_hash_is_of() {
        let minted = mint().unwrap();
        let (id, secret) = split(&minted.text).unwrap();
        assert_eq!(id, minted.id);
        assert_eq!((id.len(), secret.len()), (20, 52));
        assert!(bool::from(KeyHash::of(id, secret).ct_eq(&minted.hash)));
        assert_ne!(mint().unwrap().text, minted.text);
    }

    #[test]
    fn the_hash_is_what_a_user_can_compute() {
        // printf 'abcxyz' | sha256sum
        let text = "v1$5b90f5acd5a5d0d3cb9b8b9c5c2a0f1c";
        assert!(KeyHash::parse(text).is_none(), "too short");
        let hash = KeyHash::of("abc", "xyz");
        assert_eq!(hash.to_text(), format!("v1${}", hex(&Sha256::digest(b"abcxyz"))));
        assert!(bool::from(KeyHash::parse(&hash.to_text()).unwrap().ct_eq(&hash)));
        assert!(KeyHash::parse(&format!("v1${}", "ü".repeat(32))).is_none());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in
            ["", "sk-strata-", "sk-strata-a", "sk-strata-_b", "sk-strata-a_", "sk-x-a_b", "sk-strata-a_b c"]
        {
            assert!(split(bad).is_none(), "{bad}");
        }
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
    }
}
