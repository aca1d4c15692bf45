//! Archives within artifacts and images: only plain files come out of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::error::{FetchError, at};
use crate::name;
use crate::partial::create;

/// How to read an archive, and what of it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unpack {
    pub(crate) is_gzip: bool,
    /// Only what lies in this folder, whose name is dropped.
    pub(crate) folder: Option<&'static str>,
}

/// Unpacks the archive into a folder; the names of the files. Blocks.
pub(crate) fn unpack(
    archive: &Path,
    how: &Unpack,
    into: &Path,
    host: &str,
) -> Result<Vec<String>, FetchError> {
    let file = File::open(archive).map_err(at("open", archive))?;
    let reader: Box<dyn Read> = if how.is_gzip {
        Box::new(MultiGzDecoder::new(io::BufReader::new(file)))
    } else {
        Box::new(io::BufReader::new(file))
    };
    let mut names = Vec::new();
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries().map_err(at("unpack", archive))? {
        let mut entry = entry.map_err(at("unpack", archive))?;
        let bytes = entry.path_bytes().into_owned();
        let bad = |problem| FetchError::BadName {
            host: host.to_owned(),
            name: String::from_utf8_lossy(&bytes).into_owned(),
            problem,
        };
        let path = std::str::from_utf8(&bytes).map_err(|_| bad("it is not UTF-8"))?;
        let path = path.strip_prefix("./").unwrap_or(path);
        let path = match how.folder {
            None => path,
            Some(folder) => match path
                .strip_prefix('/')
                .unwrap_or(path)
                .strip_prefix(folder)
                .and_then(|p| p.strip_prefix('/'))
            {
                Some(path) => path,
                None => continue,
            },
        };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {}
            EntryType::Symlink | EntryType::Link => return Err(bad("it is a link")),
            _ => continue,
        }
        // A layer says so that it removes a file of a layer below.
        if path.rsplit('/').next().is_some_and(|file| file.starts_with(".wh.")) {
            continue;
        }
        let path = name::checked(host, path)?;
        let to = into.join(&path);
        let written = to.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            let mut file = create(&to, true)?;
            io::copy(&mut entry, &mut file)?;
            file.sync_all()
        });
        written.map_err(at("unpack", &to))?;
        names.push(path);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn archive(entries: &[(&str, EntryType, &[u8])], is_gzip: bool) -> tempfile::NamedTempFile {
        let mut bytes = Vec::new();
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            // Past the crate's own check of names, as an attacker's tool is.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o777);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        if is_gzip {
            let mut gzip = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            gzip.finish().unwrap();
        } else {
            file.write_all(&bytes).unwrap();
        }
        file
    }

    fn unpacked(
        entries: &[(&str, EntryType, &[u8])],
        is_gzip: bool,
        folder: Option<&'static str>,
    ) -> (tempfile::TempDir, Result<Vec<String>, FetchError>) {
        let into = tempfile::tempdir().unwrap();
        let archive = archive(entries, is_gzip);
        let names = unpack(archive.path(), &Unpack { is_gzip, folder }, into.path(), "h");
        (into, names)
    }

    #[test]
    fn the_models_folder_of_an_image() {
        let entries: [(&str, EntryType, &[u8]); 6] = [
            ("bin/sh", EntryType::Symlink, b""),
            ("models/", EntryType::Directory, b""),
            ("models/a/model.safetensors", EntryType::Regular, b"weights"),
            ("./models/config.json", EntryType::Regular, b"{}"),
            ("models/.wh.old", EntryType::Regular, b""),
            ("modelsx/config.json", EntryType::Regular, b"no"),
        ];
        for is_gzip in [false, true] {
            let (into, names) = unpacked(&entries, is_gzip, Some("models"));
            assert_eq!(names.unwrap(), ["a/model.safetensors", "config.json"]);
            assert_eq!(std::fs::read(into.path().join("a/model.safetensors")).unwrap(), b"weights");
        }
    }

    #[test]
    fn nothing_leaves_the_folder() {
        for (name, kind) in [
            ("../x", EntryType::Regular),
            ("/etc/x", EntryType::Regular),
            ("a/../../x", EntryType::Regular),
            ("link", EntryType::Symlink),
            ("link", EntryType::Link),
            (".strata-model.json", EntryType::Regular),
        ] {
            let (_into, names) = unpacked(&[(name, kind, b"x")], false, None);
            assert!(matches!(names, Err(FetchError::BadName { .. })), "{name}: {names:?}");
        }
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let whole = archive(&[("a", EntryType::Regular, &[7; 4000])], true);
        whole.as_file().set_len(40).unwrap();
        let into = tempfile::tempdir().unwrap();
        let how = Unpack { is_gzip: true, folder: None };
        assert!(unpack(whole.path(), &how, into.path(), "h").is_err());
    }
}
