//! A block as a file: what it is called, and how its bytes are encrypted.
//!
//! Each block has a key of its own, derived from the key file, the model's fingerprint and the block's
//! name. The name covers the cache scope and all tokens up to the block's end, so whoever has the disk
//! and the key file still reads only what he could have asked of the engine; and because a key encrypts
//! one content only, a nonce that came twice would tell nothing. The authentication tag is the checksum.
//!
//! ```text
//! magic 8 │ file name 32 │ bytes, little endian 8 │ nonce 12 │ AES-256-GCM ciphertext │ tag 16
//! ```

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::block::BlockHash;

const MAGIC: &[u8; 8] = b"strataK\x01";
const HEAD: usize = 8 + 32 + 8;
const TAG: usize = 16;
/// Bytes that a file has beside the block's.
pub(super) const OVERHEAD: u64 = (HEAD + NONCE_LEN + TAG) as u64;
/// Bytes of a key file at least.
const MIN_KEY: usize = 32;

/// The name of a block's file. It tells nothing of the block to who does not have the key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileName(pub(super) [u8; 32]);

impl FileName {
    /// 64 hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The name that these digits are.
    pub(super) fn parse(hex: &str) -> Option<Self> {
        let mut name = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, at) in name.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
        }
        Some(Self(name))
    }
}

/// Names and encrypts blocks of one model.
pub(super) struct Sealer {
    names: [u8; 32],
    keys: [u8; 32],
    fingerprint: [u8; 32],
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

/// Why a file is no block.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is torn, was changed, or is another block's.
    #[error("it is damaged, or not what it is called")]
    Damaged,
}

impl Sealer {
    /// `None` when the key is too short to be one.
    pub(super) fn new(key_file: &[u8], fingerprint: [u8; 32]) -> Option<Self> {
        let derive = |context| blake3::derive_key(context, key_file);
        (key_file.len() >= MIN_KEY).then(|| Self {
            names: derive("strata engine kv disk v1 file names"),
            keys: derive("strata engine kv disk v1 block keys"),
            fingerprint,
        })
    }

    /// The name of a block's file.
    pub(super) fn name(&self, hash: &BlockHash) -> FileName {
        FileName(self.derived(&self.names, hash))
    }

    fn derived(&self, key: &[u8; 32], hash: &BlockHash) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(&self.fingerprint).update(hash.as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn key(&self, hash: &BlockHash) -> io::Result<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, &self.derived(&self.keys, hash));
        key.map(LessSafeKey::new).map_err(|_| io::Error::other("the cipher does not take the key"))
    }

    fn head(&self, hash: &BlockHash, bytes: usize) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..40].copy_from_slice(&self.name(hash).0);
        head[40..].copy_from_slice(&(bytes as u64).to_le_bytes());
        head
    }

    /// Writes a block, whose bytes are encrypted in place.
    pub(super) fn write(&self, hash: &BlockHash, bytes: &mut [u8], to: &mut impl Write) -> io::Result<()> {
        let head = self.head(hash, bytes.len());
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let sealed = self.key(hash)?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(head),
            bytes,
        );
        let tag = sealed.map_err(|_| io::Error::other("the block is too large for the cipher"))?;
        to.write_all(&head)?;
        to.write_all(&nonce)?;
        to.write_all(bytes)?;
        to.write_all(tag.as_ref())
    }

    /// Reads a block of this size.
    pub(super) fn read(
        &self,
        hash: &BlockHash,
        size: usize,
        from: &mut impl Read,
    ) -> Result<Vec<u8>, ReadError> {
        let (mut head, mut nonce) = ([0; HEAD], [0; NONCE_LEN]);
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Damaged,
            _ => ReadError::Io(error),
        };
        from.read_exact(&mut head).map_err(short)?;
        from.read_exact(&mut nonce).map_err(short)?;
        if head != self.head(hash, size) {
            return Err(ReadError::Damaged);
        }
        let mut bytes = vec![0; size + TAG];
        from.read_exact(&mut bytes).map_err(short)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key(hash)?.open_in_place(nonce, Aad::from(head), &mut bytes).map_err(|_| ReadError::Damaged)?;
        bytes.truncate(size);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::HashChain;

    fn hash(salt: &str) -> BlockHash {
        let mut chain = HashChain::new(Some(salt));
        chain.extend(&[3; 16]);
        chain.hashes()[0]
    }

    #[test]
    fn a_block_is_read_back_and_nothing_else_is() {
        let sealer = Sealer::new(&[1; 32], [2; 32]).unwrap();
        let (a, b) = (hash("a"), hash("b"));
        let block: Vec<u8> = (0..200).collect();
        let mut file = Vec::new();
        sealer.write(&a, &mut block.clone(), &mut file).unwrap();
        assert_eq!(file.len() as u64, 200 + OVERHEAD);
        assert!(!file.windows(8).any(|w| w == &block[40..48]), "it is encrypted");
        let read = |sealer: &Sealer, hash, file: &[u8]| sealer.read(hash, 200, &mut &*file).ok();
        assert_eq!(read(&sealer, &a, &file), Some(block));
        assert_eq!(read(&sealer, &b, &file), None);
        assert_eq!(read(&Sealer::new(&[9; 32], [2; 32]).unwrap(), &a, &file), None);
        assert_eq!(read(&Sealer::new(&[1; 32], [3; 32]).unwrap(), &a, &file), None, "of another model");
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(read(&sealer, &a, &damaged), None, "byte {at}");
            assert_eq!(read(&sealer, &a, &file[..at]), None, "torn at {at}");
        }
        assert!(Sealer::new(&[1; 31], [2; 32]).is_none());
        assert_ne!(sealer.name(&a), sealer.name(&b));
        assert_eq!(FileName::parse(&sealer.name(&a).hex()), Some(sealer.name(&a)));
    }
}
