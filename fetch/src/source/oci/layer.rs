//! What a layer is to a model. Pure.
//!
//! Four ways of packing a model are in use: files with titles (ORAS), the CNCF's model format, Docker's
//! model format, and an image with the model in its folder `/models` (KServe's modelcars).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::unpack::Unpack;

/// A layer or a manifest, as others point to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// Where a layer's bytes belong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Skip,
    File(String),
    Archive(Unpack),
}

/// The folder of an image that has the model.
const MODELS: &str = "models";
const TITLES: [&str; 3] =
    ["org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath"];

impl Descriptor {
    /// The digest without its algorithm.
    pub(super) fn sha256(&self) -> Option<&str> {
        let hex = self.digest.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(hex)
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }
}

/// What becomes of a layer; the error says what the whole artifact is then.
pub(super) fn place(layer: &Descriptor) -> Result<Place, String> {
    let kind = layer.media_type.as_str();
    let title = TITLES.iter().find_map(|name| layer.annotation(name));
    let is_image_layer = kind.starts_with("application/vnd.oci.image.layer.")
        || kind.starts_with("application/vnd.docker.image.rootfs.");
    let is_folder = layer.annotation("io.deis.oras.content.unpack") == Some("true");
    let archive = |folder| {
        if kind.ends_with("zstd") {
            return Err("has a layer that is compressed with zstd: push it as tar or tar+gzip".to_owned());
        }
        Ok(Place::Archive(Unpack { is_gzip: kind.ends_with("gzip"), folder }))
    };
    if is_folder {
        return archive(None);
    }
    if let Some(part) =
        kind.strip_prefix("application/vnd.cncf.model.").or(kind.strip_prefix("application/vnd.cnai.model."))
    {
        let is_needed = part.starts_with("weight");
        return match (is_needed, title) {
            (false, _) => Ok(Place::Skip),
            (true, _) if is_tar(kind) => archive(None),
            (true, Some(title)) => Ok(Place::File(title.to_owned())),
            (true, None) => Err("has a weight without a file name".to_owned()),
        };
    }
    if let Some(part) = kind.strip_prefix("application/vnd.docker.ai.") {
        return match (part, title) {
            (part, _) if part.starts_with("license") || part.contains("mmproj") => Ok(Place::Skip),
            (part, _) if is_tar(part) => archive(None),
            (_, Some(title)) => Ok(Place::File(title.to_owned())),
            (part, None) if part.starts_with("gguf") => Ok(Place::File("model.gguf".to_owned())),
            (part, None) if part.starts_with("chat.template") => {
                Ok(Place::File("chat_template.jinja".to_owned()))
            }
            _ => Ok(Place::Skip),
        };
    }
    match title {
        // A title means a file even where the type is that of an image's layer, which is what ORAS
        // gives a file without a type.
        Some(title) => Ok(Place::File(title.to_owned())),
        None if is_image_layer => archive(Some(MODELS)),
        None if is_tar(kind) => archive(None),
        None => Ok(Place::Skip),
    }
}

fn is_tar(kind: &str) -> bool {
    [".tar", "+tar", ".tar+gzip", ".tar.gzip", ".tar+zstd"].iter().any(|end| kind.ends_with(end))
}

/// The manifest for this machine, or the only one.
pub(super) fn of_this_machine(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut real = manifests.iter().filter(|m| m.platform.as_ref().is_none_or(|p| p.os != "unknown"));
    let fits = |m: &&Descriptor| {
        m.platform
            .as_ref()
            .is_some_and(|p| p.architecture == machine && matches!(p.os.as_str(), "linux" | ""))
    };
    manifests.iter().find(fits).or_else(|| real.next().filter(|_| real.next().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kind: &str, annotations: &[(&str, &str)]) -> Descriptor {
        Descriptor {
            media_type: kind.to_owned(),
            annotations: annotations.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..Descriptor::default()
        }
    }

    #[test]
    fn each_way_of_packing() {
        let file = |name: &str| Ok(Place::File(name.to_owned()));
        let archive = |is_gzip, folder| Ok(Place::Archive(Unpack { is_gzip, folder }));
        let title = ("org.opencontainers.image.title", "a/b.gguf");
        let path = ("org.cncf.model.filepath", "model.safetensors");
        for (kind, annotations, wanted) in [
            ("application/vnd.oci.image.layer.v1.tar", &[title][..], file("a/b.gguf")),
            ("application/octet-stream", &[title], file("a/b.gguf")),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                &[title, ("io.deis.oras.content.unpack", "true")],
                archive(true, None),
            ),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &[], archive(true, Some("models"))),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", &[], archive(true, Some("models"))),
            ("application/vnd.oci.image.layer.v1.tar", &[], archive(false, Some("models"))),
            ("application/vnd.cncf.model.weight.v1.raw", &[path], file("model.safetensors")),
            ("application/vnd.cncf.model.weight.config.v1.tar", &[path], archive(false, None)),
            ("application/vnd.cncf.model.doc.v1.tar", &[path], Ok(Place::Skip)),
            ("application/vnd.docker.ai.gguf.v3", &[], file("model.gguf")),
            ("application/vnd.docker.ai.license", &[], Ok(Place::Skip)),
            ("application/vnd.kitops.modelkit.model.v1.tar+gzip", &[], archive(true, None)),
            ("application/json", &[], Ok(Place::Skip)),
        ] {
            assert_eq!(place(&layer(kind, annotations)), wanted, "{kind}");
        }
        assert!(place(&layer("application/vnd.oci.image.layer.v1.tar+zstd", &[])).is_err());
    }

    #[test]
    fn the_manifest_of_this_machine() {
        let of = |architecture: &str, os: &str| Descriptor {
            digest: architecture.to_owned(),
            platform: Some(Platform { architecture: architecture.to_owned(), os: os.to_owned() }),
            ..Descriptor::default()
        };
        let chosen = |all: &[Descriptor]| of_this_machine(all).map(|m| m.digest.clone());
        let this = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        assert_eq!(chosen(&[of("s390x", "linux"), of(this, "linux")]).as_deref(), Some(this));
        assert_eq!(chosen(&[of("s390x", "linux"), of("unknown", "unknown")]).as_deref(), Some("s390x"));
        assert_eq!(chosen(&[of("s390x", "linux"), of("ppc64le", "linux")]), None);
        assert_eq!(chosen(&[Descriptor::default()]).as_deref(), Some(""));
    }
}
