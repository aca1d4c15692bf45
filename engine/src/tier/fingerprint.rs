//! Which model a block's numbers are of: equal tokens give equal keys and values only with equal weights.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files up to this size are read whole: half a second at most.
const WHOLE: u64 = 1 << 30;
/// Of larger files, so many pieces are read, evenly spread, the first and the last among them.
const PIECES: u64 = 8192;
/// Bytes of a piece.
const PIECE: usize = 16 * 1024;

/// A name for the model at this path, and for the form of a backend's blocks of it. Models whose files
/// are equal have the same, wherever they lie. Of a file of more than 1 GiB, 128 MiB all over it count.
pub fn fingerprint(model: &Path, layout: &str) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key("strata engine kv model v1");
    hasher.update(&(layout.len() as u64).to_le_bytes()).update(layout.as_bytes());
    for path in files(model)? {
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        hasher.update(&size.to_le_bytes());
        let (step, piece) = if size <= WHOLE { (1 << 20, 1 << 20) } else { (size / (PIECES - 1), PIECE) };
        let mut buffer = vec![0; piece];
        let mut at = 0;
        while at < size {
            let from = at.min(size.saturating_sub(piece as u64));
            let from = if size <= WHOLE { at } else { from };
            let len = piece.min((size - from) as usize);
            file.read_exact_at(&mut buffer[..len], from)?;
            hasher.update(&buffer[..len]);
            at += step;
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The file, or the folder's files that a model is made of, in the order of their names.
fn files(model: &Path) -> io::Result<Vec<PathBuf>> {
    if !model.is_dir() {
        return Ok(vec![model.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(model)? {
        let path = entry?.path();
        let is_part = path.extension().is_some_and(|e| e == "safetensors" || e == "json");
        if is_part && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_or_another_layout_is_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let of = |bytes: &[u8], layout: &str| {
            std::fs::write(&path, bytes).unwrap();
            fingerprint(&path, layout).unwrap()
        };
        let mut bytes = vec![7; 3 << 20];
        let first = of(&bytes, "a");
        assert_eq!(of(&bytes, "a"), first);
        assert_ne!(of(&bytes, "b"), first);
        *bytes.last_mut().unwrap() = 8;
        assert_ne!(of(&bytes, "a"), first);
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let whole = fingerprint(folder.path(), "a").unwrap();
        std::fs::write(folder.path().join("config.json"), "{ }").unwrap();
        assert_ne!(fingerprint(folder.path(), "a").unwrap(), whole);
        assert!(fingerprint(&folder.path().join("absent"), "a").is_err());
    }
}
