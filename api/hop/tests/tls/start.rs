//! What is said at the start of a process whose certificates cannot be used.

use strata_hop::{Component, Mtls};

use crate::pki::{Authority, Leaf, Mount, now};

fn refusal(mount: &Mount) -> String {
    let error = Mtls::open(mount.path(), Component::Engine).unwrap_err().to_string();
    error.replace(mount.path().to_str().unwrap(), "DIR")
}

#[test]
fn certificates_that_cannot_be_used_stop_the_start_and_say_why() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let ca = authority.pem();
    let engine = "spiffe://strata/ns/models/engine";
    let good = authority.leaf("models", "engine");
    let with = |leaf: &Leaf| refusal(&Mount::new(leaf, &ca));

    let expected = |text: String, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "wanted {part:?} in {text:?}");
        }
    };
    expected(
        with(&authority.leaf_for(engine, now() - 100, now() - 40)),
        &[
            "the certificates in DIR (STRATA_HOP_DIR) cannot be used: tls.crt of spiffe://strata/ns/models/engine does not hold now: it expired 4",
        ],
    );
    expected(
        with(&authority.leaf_for(engine, now() + 100, now() + 400)),
        &["it begins to hold in ", "is the clock right?"],
    );
    expected(
        with(&authority.leaf("strata", "gateway")),
        &[
            "the certificate in DIR (STRATA_HOP_DIR) is of spiffe://strata/ns/strata/gateway, and this is an engine",
        ],
    );
    expected(
        with(&authority.leaf_for("https://x", now() - 1, now() + 9)),
        &["tls.crt cannot be used: it names no single spiffe://strata/ns/NAMESPACE/COMPONENT"],
    );
    expected(
        refusal(&Mount::new(&good, &other.pem())),
        &["tls.crt of spiffe://strata/ns/models/engine is signed by none of the authorities in ca.crt"],
    );
    expected(refusal(&Mount::new(&good, "")), &["ca.crt holds no certificate in PEM"]);
    expected(with(&Leaf { key: String::new(), ..good.clone() }), &["tls.key holds no private key in PEM"]);
    let key = authority.leaf("models", "engine").key;
    expected(with(&Leaf { key, ..good.clone() }), &["tls.key is not the key of tls.crt"]);
    expected(
        with(&Leaf { certificate: "-----BEGIN".to_owned(), ..good.clone() }),
        &["tls.crt holds no certificate in PEM"],
    );
    let mount = Mount::new(&good, &ca);
    assert!(Mtls::open(mount.path(), Component::Engine).is_ok());
    std::fs::remove_file(mount.path().join("ca.crt")).unwrap();
    std::fs::remove_file(mount.path().join("..data/ca.crt")).unwrap();
    expected(refusal(&mount), &["cannot read DIR/ca.crt: No such file or directory"]);
}
