//! Blocks as one body: a head that says of what model they are, then each block with its checksum.
//!
//! ```text
//! magic 8 │ fingerprint 32 │ bytes of a block 8 │ blocks 8 │ (name 32 │ bytes │ blake3 of both 32)…
//! ```
//! Numbers are little endian.

use std::convert::Infallible;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use strata_hop::Body;

use crate::block::BlockHash;

const MAGIC: &[u8; 8] = b"strataB\x01";
const HEAD: usize = 8 + 32 + 8 + 8;

fn checksum(hash: &BlockHash, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(hash.as_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

/// The body of these blocks, each made as it is sent.
pub(crate) fn encode(fingerprint: &[u8; 32], block_bytes: usize, blocks: Vec<(BlockHash, Bytes)>) -> Body {
    let mut head = BytesMut::with_capacity(HEAD);
    head.put_slice(MAGIC);
    head.put_slice(fingerprint);
    head.put_u64_le(block_bytes as u64);
    head.put_u64_le(blocks.len() as u64);
    let parts = blocks.into_iter().flat_map(|(hash, bytes)| {
        let sum = checksum(&hash, &bytes);
        [Bytes::copy_from_slice(hash.as_bytes()), bytes, Bytes::copy_from_slice(&sum)]
    });
    let parts = std::iter::once(head.freeze()).chain(parts);
    Body::from_stream(futures::stream::iter(parts.map(Ok::<_, Infallible>)))
}

/// Reads a body as it comes.
pub(crate) struct Decoder {
    fingerprint: [u8; 32],
    block_bytes: usize,
    most: usize,
    buffer: BytesMut,
    /// Blocks that are still to come, once the head is read.
    left: Option<u64>,
}

impl Decoder {
    /// For at most `most` blocks of this size, of the model of this fingerprint.
    pub(crate) fn new(fingerprint: [u8; 32], block_bytes: usize, most: usize) -> Self {
        Self { fingerprint, block_bytes, most, buffer: BytesMut::new(), left: None }
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next block, when it is there as a whole; an error says why nothing of the rest counts.
    pub(crate) fn next(&mut self) -> Result<Option<(BlockHash, Bytes)>, String> {
        let left = match self.left {
            Some(left) => left,
            None if self.buffer.len() < HEAD => return Ok(None),
            None => self.head()?,
        };
        let whole = 32 + self.block_bytes + 32;
        if self.buffer.len() < whole || left == 0 {
            return if left == 0 && !self.buffer.is_empty() {
                Err("it sent too much".into())
            } else {
                Ok(None)
            };
        }
        let mut name = [0; 32];
        self.buffer.copy_to_slice(&mut name);
        let hash = BlockHash::from_bytes(name);
        let bytes = self.buffer.split_to(self.block_bytes).freeze();
        let mut sum = [0; 32];
        self.buffer.copy_to_slice(&mut sum);
        if sum != checksum(&hash, &bytes) {
            return Err("a block came damaged".into());
        }
        self.left = Some(left - 1);
        Ok(Some((hash, bytes)))
    }

    fn head(&mut self) -> Result<u64, String> {
        let mut head = self.buffer.split_to(HEAD);
        if !head.starts_with(MAGIC) {
            return Err("it does not speak this version".into());
        }
        head.advance(MAGIC.len());
        let (fingerprint, rest) = head.split_at(32);
        let mut rest = rest;
        if *fingerprint != self.fingerprint || rest.get_u64_le() != self.block_bytes as u64 {
            return Err("it serves another model, or keeps blocks in another form".into());
        }
        let blocks = rest.get_u64_le();
        if blocks > self.most as u64 {
            return Err(format!("it sends {blocks} blocks and {} are taken", self.most));
        }
        self.left = Some(blocks);
        Ok(blocks)
    }

    /// An error when something is missing.
    pub(crate) fn finish(&self) -> Result<(), String> {
        if self.left == Some(0) && self.buffer.is_empty() {
            return Ok(());
        }
        Err("it broke off".into())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn body(blocks: &[(BlockHash, Bytes)]) -> Vec<u8> {
        let body = encode(&[5; 32], 40, blocks.to_vec());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let collected = runtime.block_on(body.collect()).unwrap();
        collected.to_bytes().to_vec()
    }

    fn read(body: &[u8], cut: usize, model: u8) -> Result<Vec<(BlockHash, Bytes)>, String> {
        let mut decoder = Decoder::new([model; 32], 40, 3);
        let mut blocks = Vec::new();
        for piece in body.chunks(cut) {
            decoder.push(piece);
            while let Some(block) = decoder.next()? {
                blocks.push(block);
            }
        }
        decoder.finish().map(|()| blocks)
    }

    proptest! {
        #[test]
        fn what_arrives_is_what_was_sent_or_an_error(
            count in 0usize..5, cut in 1usize..200, damage in prop::option::of((0usize..400, 1u8..)), short in 0usize..3,
        ) {
            let block = |n: usize| (BlockHash::from_bytes([n as u8; 32]), Bytes::from(vec![n as u8 + 1; 40]));
            let blocks: Vec<_> = (0..count).map(block).collect();
            let mut bytes = body(&blocks);
            let damaged = damage.filter(|(at, _)| *at < bytes.len());
            if let Some((at, by)) = damaged {
                bytes[at] ^= by;
            }
            let kept = bytes.len() - short;
            let got = read(&bytes[..kept], cut, 5);
            if damaged.is_none() && short == 0 && count <= 3 {
                prop_assert_eq!(got, Ok(blocks));
            } else {
                prop_assert!(got.is_err());
            }
        }
    }

    #[test]
    fn another_models_blocks_are_not_taken() {
        assert!(read(&body(&[]), 64, 6).unwrap_err().contains("another model"));
        assert_eq!(read(&body(&[]), 64, 5), Ok(vec![]));
    }
}
