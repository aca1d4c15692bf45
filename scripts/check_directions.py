#!/usr/bin/env python3
"""Hold the directions between crates that deny.toml states, with cargo alone.

Reads `[bans] deny` of deny.toml and the resolved graph of `cargo metadata`: a listed crate may be a
direct dependency of its wrappers only, and of nothing when it has none. Beside that: the contract
crate `strata-wire` uses no other crate of Strata, and engine, platform and fetch reach no Kubernetes crate
by any path. Exits 1 and names every edge that breaks a rule. Dev-dependencies count like others.
"""

import json
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
NO_KUBERNETES = ["strata-wire", "strata-hop", "strata-trace", "strata-engine", "strata-platform", "strata-fetch"]


def broken_edges(deny: dict, metadata: dict) -> list[str]:
    names = {p["id"]: p["name"] for p in metadata["packages"]}
    uses = {names[n["id"]]: {names[d["pkg"]] for d in n["deps"]} for n in metadata["resolve"]["nodes"]}
    broken = []
    for rule in deny["bans"]["deny"]:
        allowed = set(rule.get("wrappers", []))
        for user, used in sorted(uses.items()):
            if rule["crate"] in used and user not in allowed:
                broken.append(f"{user} uses {rule['crate']}, which only {sorted(allowed) or 'nobody'} may use")
    for used in sorted(uses["strata-wire"]):
        if used.startswith("strata-"):
            broken.append(f"strata-wire uses {used}; the contract depends on no other crate here")
    for start in NO_KUBERNETES:
        reached, todo = set(), [start]
        while todo:
            crate = todo.pop()
            if crate not in reached:
                reached.add(crate)
                todo.extend(uses[crate])
        for crate in sorted(reached & {"kube", "kube-core", "kube-client", "k8s-openapi"}):
            broken.append(f"{start} reaches {crate}; it must know no Kubernetes")
    return broken


def main() -> int:
    deny = tomllib.loads((ROOT / "deny.toml").read_text())
    out = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    broken = broken_edges(deny, json.loads(out))
    for line in broken:
        print(f"direction broken: {line}", file=sys.stderr)
    if not broken:
        print(f"directions hold: {len(deny['bans']['deny'])} rules")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
