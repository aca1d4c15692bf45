//! `strata keys`: run-time keys in the ledger, beside a gateway that may be running on it.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use jiff::{Timestamp, Unit};
use serde_json::json;
use strata_gateway::keys::{KeyInfo, KeyStore, Role};
use strata_operator::host::status;

use crate::args::KeysAction;
use crate::output::{self, Format};
use crate::state::StateArgs;

pub(super) fn run(action: KeysAction) -> anyhow::Result<()> {
    match action {
        KeysAction::Create { tenant, name, expires, admin, state, output } => {
            check_tenant(&tenant, &state.folder()?)?;
            let now = Timestamp::now();
            let expires = expires.map(|text| expiry(&text, now)).transpose()?;
            let role = if admin { Role::Admin } else { Role::Member };
            let (key, info) = store(&state)?.create(&tenant, &name, role, expires)?;
            output::print(&match output {
                Format::Table => format!("{key}\n"),
                Format::Json => {
                    let mut object = json(&info);
                    object["key"] = key.into();
                    format!("{object:#}\n")
                }
            })
        }
        KeysAction::List { tenant, state, output } => {
            let keys = existing(&state)?.list(tenant.as_deref())?;
            output::print(&match output {
                Format::Table => table(&keys, Timestamp::now()),
                Format::Json => format!("{:#}\n", keys.iter().map(json).collect::<serde_json::Value>()),
            })
        }
        KeysAction::Revoke { id, state } => {
            if !existing(&state)?.revoke(&id)? {
                bail!("no working key has the id `{id}`; `strata keys list` shows the ids");
            }
            output::print(&format!("revoked {id}\n"))
        }
    }
}

/// The store, if anything has ever been kept there: a mistyped folder is not made.
fn existing(state: &StateArgs) -> anyhow::Result<KeyStore> {
    crate::state::existing_ledger(&state.folder()?)?;
    store(state)
}

fn store(state: &StateArgs) -> anyhow::Result<KeyStore> {
    let ledger = crate::state::ledger(&state.folder()?);
    KeyStore::open(&ledger).with_context(|| format!("cannot open the ledger {}", ledger.display()))
}

/// An error for what cannot be a Tenant's name. A key of a tenant that is not there yet may be wanted; of
/// one that the running stack does not know it is said.
fn check_tenant(tenant: &str, state: &Path) -> anyhow::Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if tenant.len() > 253
        || !tenant.chars().all(good)
        || !ends(tenant.chars().next())
        || !ends(tenant.chars().next_back())
    {
        bail!(
            "--tenant `{tenant}` is no Tenant's name: use the `metadata.name` of one, \
             of lower-case letters, digits, `-` and `.`"
        );
    }
    let Ok(Some(stack)) = status::read(state) else { return Ok(()) };
    if !stack.objects.iter().any(|o| o.kind == "Tenant" && o.name == tenant) {
        let folder = stack.folder.display();
        let _ = writeln!(
            std::io::stderr(),
            "warning: {folder} has no Tenant `{tenant}`; the key works once it has"
        );
    }
    Ok(())
}

/// The second since 1970 that lies `text` (such as `12h` or `90d`) after `now`.
fn expiry(text: &str, now: Timestamp) -> anyhow::Result<i64> {
    let wrong = || format!("--expires `{text}` is no duration: use a number with s, m, h or d, such as 90d");
    let unit = text.chars().last().filter(char::is_ascii_alphabetic).with_context(wrong)?;
    let count: i64 = text[..text.len() - 1].parse().ok().filter(|n| *n > 0).with_context(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => bail!(wrong()),
    };
    let at = count.checked_mul(seconds).and_then(|s| now.as_second().checked_add(s)).with_context(wrong)?;
    Timestamp::from_second(at).with_context(|| {
        format!("--expires `{text}` lies too far ahead; leave it out for a key that lasts")
    })?;
    Ok(at)
}

fn json(key: &KeyInfo) -> serde_json::Value {
    json!({
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "role": key.role.name(),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    })
}

fn table(keys: &[KeyInfo], now: Timestamp) -> String {
    let day = |second: Option<i64>| {
        second.and_then(|s| Timestamp::from_second(s).ok()).map_or_else(
            || "-".to_owned(),
            |t| t.round(Unit::Second).map_or_else(|_| t.to_string(), |t| t.to_string()),
        )
    };
    let rows: Vec<_> = keys
        .iter()
        .map(|k| {
            let state = match (k.revoked, k.expires) {
                (Some(_), _) => "revoked",
                (None, Some(at)) if at <= now.as_second() => "expired",
                _ => "active",
            };
            [
                k.id.clone(),
                k.tenant.clone(),
                k.name.clone(),
                k.role.name().to_owned(),
                state.to_owned(),
                day(Some(k.created)),
                day(k.expires),
            ]
        })
        .collect();
    output::table(["ID", "TENANT", "NAME", "ROLE", "STATE", "CREATED", "EXPIRES"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_becomes_a_moment() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(expiry("90d", now).unwrap(), 1000 + 90 * 86400);
        assert_eq!(expiry("5m", now).unwrap(), 1300);
        assert!(expiry("99999999999d", now).unwrap_err().to_string().contains("too far ahead"));
        for wrong in ["", "d", "-1d", "0h", "3w", "1.5h", "9999999999999999999d", "é"] {
            let message = expiry(wrong, now).unwrap_err().to_string();
            assert!(message.contains("such as 90d"), "{message}");
        }
    }

    #[test]
    fn a_table_shows_no_secret() {
        let key = KeyInfo {
            id: "abc".into(),
            tenant: "acme".into(),
            name: "ci".into(),
            role: Role::Member,
            created: 0,
            expires: Some(86400),
            revoked: None,
        };
        let shown = |second| table(std::slice::from_ref(&key), Timestamp::from_second(second).unwrap());
        insta::assert_snapshot!(shown(86399), @r"
        ID   TENANT  NAME  ROLE    STATE   CREATED               EXPIRES
        abc  acme    ci    member  active  1970-01-01T00:00:00Z  1970-01-02T00:00:00Z
        ");
        assert!(shown(86400).contains("expired"), "{}", shown(86400));
    }

    #[test]
    fn a_tenant_has_a_name() {
        let nothing_runs = tempfile::tempdir().unwrap();
        check_tenant("team-1.eu", nothing_runs.path()).unwrap();
        for wrong in ["", "../x", "Acme", "a b", "-a", "a-", "é"] {
            let message = check_tenant(wrong, nothing_runs.path()).unwrap_err().to_string();
            assert!(message.contains("metadata.name"), "{message}");
        }
    }
}
