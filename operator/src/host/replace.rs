//! Files that readers never see half written.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a file with this content and mode in the place of what is there.
pub(super) fn file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    let _ = std::fs::remove_file(&part);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.write_all(content)?;
    drop(file);
    std::fs::rename(&part, path)
}
