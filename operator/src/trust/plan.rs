//! Which Secrets to write, from those that are there and the time. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use strata_hop::tls::credentials::{AUTHORITIES, CERTIFICATE, KEY, certificates, signed_by};
use strata_hop::tls::{Component, Credentials, Files, Identity};

use super::issue;
use super::record::{self, Record, bundle, youngest_first};
use super::{Held, Schedule, SecretName, Wanted};

/// What is there, and what should be.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// Strata's namespace.
    pub namespace: &'a str,
    /// The Secrets that exist, of those that the wanted ones and the authorities are in.
    pub existing: &'a BTreeMap<SecretName, Held>,
    /// Who is to have a certificate. Everybody, always: an authority is given up once nobody in this
    /// list is named by it.
    pub wanted: &'a [Wanted],
    /// The times.
    pub schedule: &'a Schedule,
}

/// One Secret to write. They are to be written in the order of the plan, after which the next plan is
/// made: what depends on a key that is not there yet is in that.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretAction {
    /// The authorities: these, and a new one if `make`.
    Authorities {
        /// Those to keep.
        keep: Vec<Record>,
        /// Whether to make another.
        make: bool,
    },
    /// A new certificate for somebody.
    Issue {
        /// For whom.
        identity: Identity,
        /// What its Secret goes away with.
        owners: Vec<OwnerReference>,
        /// Who signs.
        signer: Record,
        /// Whom the holder is to trust, in PEM.
        bundle: String,
        /// Why it is made.
        why: Why,
    },
    /// The same certificate beside other authorities or owners.
    Update {
        /// Whose.
        identity: Identity,
        /// What its Secret goes away with.
        owners: Vec<OwnerReference>,
        /// Everything that the Secret is to hold.
        files: Files,
    },
}

/// Why a certificate is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no Secret.
    Missing,
    /// What is there cannot be used by its holder, or is another's.
    Unusable,
    /// Two thirds of its time are over.
    Due,
}

/// What is to be written at `now`, in seconds since 1970. Nothing when all is as it should be.
pub fn plan(world: &World<'_>, now: i64) -> Vec<SecretAction> {
    if !(0..=issue::LAST).contains(&now) {
        // No certificate can hold at such a time.
        return Vec::new();
    }
    let (authorities, leaves) = world.judge(now);
    if !authorities.iter().any(|a| is_fresh(a, now)) {
        return vec![SecretAction::Authorities { keep: authorities, make: true }];
    }
    let mut actions = Vec::new();
    if record::write(&authorities) != world.data(&SecretName::authorities(world.namespace)) {
        actions.push(SecretAction::Authorities { keep: authorities.clone(), make: false });
    }
    let Some((signer, is_ripe)) = world.signer(&authorities, now) else { return actions };
    let trusted = bundle(&authorities);
    for (wanted, leaf) in world.wanted.iter().zip(leaves) {
        let (identity, owners) = (wanted.identity.clone(), wanted.owners.clone());
        let why = match &leaf {
            Leaf::Missing => Some(Why::Missing),
            Leaf::Unusable => Some(Why::Unusable),
            Leaf::Good(good) => (now >= world.renewal(good, signer, is_ripe)).then_some(Why::Due),
        };
        if let Some(why) = why {
            let (signer, bundle) = (signer.clone(), trusted.clone());
            actions.push(SecretAction::Issue { identity, owners, signer, bundle, why });
        } else if let Some(files) = world.changed(wanted, &trusted) {
            actions.push(SecretAction::Update { identity, owners, files });
        }
    }
    actions
}

/// Until when no plan has anything in it, after this one was carried out, if nothing but the time
/// changes.
pub fn due(world: &World<'_>, now: i64) -> i64 {
    let (authorities, leaves) = world.judge(now);
    let mut moments = Vec::new();
    for authority in &authorities {
        moments.push(two_thirds(authority.not_before, authority.not_after));
        moments.push(authority.not_after.saturating_add(1));
        moments.extend(authority.unused_since.map(|t| t.saturating_add(world.schedule.overlap)));
    }
    if let Some((signer, is_ripe)) = world.signer(&authorities, now) {
        let good =
            leaves.iter().filter_map(|leaf| if let Leaf::Good(good) = leaf { Some(good) } else { None });
        moments.extend(good.map(|good| world.renewal(good, signer, is_ripe)));
    }
    moments.into_iter().filter(|t| *t > now).min().unwrap_or(i64::MAX)
}

/// What there is of somebody's certificate.
enum Leaf {
    Missing,
    Unusable,
    Good(Good),
}

/// A certificate that its holder can use.
struct Good {
    not_before: i64,
    not_after: i64,
    /// The authority that signed it.
    by: String,
}

/// When two thirds of a span are over.
fn two_thirds(from: i64, to: i64) -> i64 {
    from.saturating_add(to.saturating_sub(from) / 3 * 2)
}

/// Whether it is young enough to make no other one.
fn is_fresh(authority: &Record, now: i64) -> bool {
    authority.key.is_some()
        && authority.holds(now)
        && now < two_thirds(authority.not_before, authority.not_after)
}

impl World<'_> {
    fn data(&self, name: &SecretName) -> BTreeMap<String, Vec<u8>> {
        self.existing.get(name).map(|held| held.data.clone()).unwrap_or_default()
    }

    fn file(&self, identity: &Identity, file: &str) -> Option<&[u8]> {
        self.existing.get(&SecretName::of(identity))?.data.get(file).map(Vec::as_slice)
    }

    /// The authorities as they are to be kept: without those that have ended or are no longer needed,
    /// with what has been noticed about them. And what there is for each of the wanted.
    fn judge(&self, now: i64) -> (Vec<Record>, Vec<Leaf>) {
        let mut known = record::read(&self.data(&SecretName::authorities(self.namespace)));
        if known.is_empty() {
            known = self.remembered();
        }
        known.retain(|a| now <= a.not_after);
        let trusted = bundle(&known);
        let leaves: Vec<Leaf> = self.wanted.iter().map(|w| self.leaf(w, &known, &trusted, now)).collect();
        let has_named = |authority: &Record| {
            leaves.iter().any(|leaf| matches!(leaf, Leaf::Good(good) if good.by == authority.id))
        };
        let signer = self.signer(&known, now).map(|(signer, _)| signer.clone());
        let in_doubt = signer.as_ref().is_some_and(|signer| self.is_in_doubt(&leaves, signer, now));
        known.retain_mut(|authority| {
            if in_doubt && !has_named(authority) {
                (authority.trusted_since, authority.unused_since) = (None, None);
            }
            if authority.trusted_since.is_none() && self.is_trusted_by_all(authority) {
                authority.trusted_since = Some(now);
            }
            let is_past = signer.as_ref().is_some_and(|signer| {
                signer.id != authority.id
                    && (authority.key.is_none() || authority.not_before <= signer.not_before)
            });
            if !is_past || has_named(authority) {
                authority.unused_since = None;
                return true;
            }
            let since = *authority.unused_since.get_or_insert(now);
            now.saturating_sub(since) < self.schedule.overlap
        });
        youngest_first(&mut known);
        (known, leaves)
    }

    /// Whether the holder of some Secret may be behind: what it should have read is not there, so that
    /// it goes on with what it read before, however old that is. A change of authority then begins to
    /// wait anew, but not for so long that the one which signs comes to its end.
    fn is_in_doubt(&self, leaves: &[Leaf], signer: &Record, now: i64) -> bool {
        let has_time = signer.not_after.saturating_sub(now) > self.schedule.leaf;
        has_time && leaves.iter().any(|leaf| !matches!(leaf, Leaf::Good(_)))
    }

    /// When the authorities' own Secret is lost: those that this operator itself has trusted so far.
    /// Without their keys they sign nothing more, but whom they named stays trusted. The word of no other
    /// Secret is taken for it: whoever may write one in a namespace of models would name authorities.
    fn remembered(&self) -> Vec<Record> {
        let own = Identity::new(self.namespace, Component::Operator);
        let Some(pem) = own.as_ref().and_then(|own| self.file(own, AUTHORITIES)) else { return Vec::new() };
        let text = String::from_utf8_lossy(pem);
        let mut known: Vec<Record> = text
            .split_inclusive("-----END CERTIFICATE-----")
            .filter_map(|one| Record::new(one.trim(), None))
            .collect();
        youngest_first(&mut known);
        known.dedup_by(|a, b| a.id == b.id);
        known
    }

    /// Who signs: the youngest that everybody has trusted for long enough; at the very beginning, or
    /// after a loss, the oldest there is. With it, whether everybody trusts it.
    fn signer<'r>(&self, authorities: &'r [Record], now: i64) -> Option<(&'r Record, bool)> {
        let able = || authorities.iter().filter(|a| a.key.is_some() && a.holds(now));
        let is_ripe = |a: &&Record| {
            a.trusted_since.is_some_and(|since| now.saturating_sub(since) >= self.schedule.overlap)
        };
        able()
            .filter(is_ripe)
            .max_by_key(|a| (a.not_before, &a.id))
            .map(|a| (a, true))
            .or_else(|| able().min_by_key(|a| (a.not_before, &a.id)).map(|a| (a, false)))
    }

    fn is_trusted_by_all(&self, authority: &Record) -> bool {
        !self.wanted.is_empty()
            && self.wanted.iter().all(|wanted| {
                let trusted = self.file(&wanted.identity, AUTHORITIES).unwrap_or_default();
                certificates(trusted).iter().any(|der| der.as_ref() == authority.der)
            })
    }

    /// What somebody has, judged as its holder judges it when it trusts `authorities`.
    fn leaf(&self, wanted: &Wanted, authorities: &[Record], trusted: &str, now: i64) -> Leaf {
        let Some(files) = self.files(&wanted.identity, trusted) else { return Leaf::Missing };
        let Ok(credentials) = Credentials::parse(&files, now) else { return Leaf::Unusable };
        let certificate = credentials.certificate;
        let chain = certificates(&files.certificate);
        let by = authorities.iter().find(|authority| signed_by(&chain, &authority.der, now));
        match by {
            Some(by) if certificate.identity == wanted.identity => Leaf::Good(Good {
                not_before: certificate.not_before,
                not_after: certificate.not_after,
                by: by.id.clone(),
            }),
            _ => Leaf::Unusable,
        }
    }

    fn files(&self, identity: &Identity, trusted: &str) -> Option<Files> {
        let held = self.existing.get(&SecretName::of(identity))?;
        let file = |file: &str| held.data.get(file).cloned().unwrap_or_default();
        Some(Files {
            certificate: file(CERTIFICATE),
            key: file(KEY),
            authorities: trusted.as_bytes().to_vec(),
        })
    }

    /// What a Secret is to hold, where it holds other authorities or has other owners.
    fn changed(&self, wanted: &Wanted, trusted: &str) -> Option<Files> {
        let held = self.existing.get(&SecretName::of(&wanted.identity))?;
        let is_same = held.owners == wanted.owners
            && self.file(&wanted.identity, AUTHORITIES) == Some(trusted.as_bytes());
        if is_same { None } else { self.files(&wanted.identity, trusted) }
    }

    /// When a certificate is renewed. By an authority that some may not trust yet it is put off for as
    /// long as the certificate lasts.
    fn renewal(&self, good: &Good, signer: &Record, is_ripe: bool) -> i64 {
        let usual = two_thirds(good.not_before.saturating_add(self.schedule.skew), good.not_after);
        if is_ripe {
            return usual;
        }
        let ripe = signer.trusted_since.map_or(i64::MAX, |t| t.saturating_add(self.schedule.overlap));
        usual.max(ripe.min(good.not_after.saturating_sub(self.schedule.overlap)))
    }
}
