//! An authority of the test's own, and its certificates in folders as the kubelet mounts them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Who signs.
#[derive(Clone)]
pub struct Authority {
    certificate: Arc<Certificate>,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = Arc::new(params.self_signed(&key).unwrap());
        Self { certificate, issuer: Arc::new(Issuer::new(params, key)) }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for this URI that holds from `from` to `to`, in seconds since 1970.
    pub fn leaf_for(&self, uri: &str, from: i64, to: i64) -> Leaf {
        let at = |s: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(s as u64);
        let mut params = CertificateParams::default();
        params.not_before = at(from);
        params.not_after = at(to);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate that holds for an hour.
    pub fn leaf(&self, namespace: &str, component: &str) -> Leaf {
        self.leaf_for(&format!("spiffe://strata/ns/{namespace}/{component}"), now() - 60, now() + 3600)
    }

    /// The same in a folder, beside this authority's own.
    pub fn mount(&self, namespace: &str, component: &str) -> Mount {
        Mount::new(&self.leaf(namespace, component), &self.pem())
    }
}

/// A folder in which the kubelet keeps a Secret: links to files behind one link that is swapped.
pub struct Mount {
    folder: tempfile::TempDir,
    version: std::cell::Cell<u32>,
}

impl Mount {
    pub fn new(leaf: &Leaf, authorities: &str) -> Self {
        let mount = Self { folder: tempfile::tempdir().unwrap(), version: std::cell::Cell::new(0) };
        mount.replace(leaf, authorities);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
        }
        mount
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    /// Swaps all files at once.
    pub fn replace(&self, leaf: &Leaf, authorities: &str) {
        self.replace_raw(&leaf.certificate, &leaf.key, authorities);
    }

    pub fn replace_raw(&self, certificate: &str, key: &str, authorities: &str) {
        let version = self.version.get() + 1;
        self.version.set(version);
        let dir = PathBuf::from(format!("..{version}"));
        let at = self.path().join(&dir);
        std::fs::create_dir(&at).unwrap();
        for (name, text) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", authorities)] {
            std::fs::write(at.join(name), text).unwrap();
        }
        let link = self.path().join("..data_tmp");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        std::fs::rename(&link, self.path().join("..data")).unwrap();
    }
}
