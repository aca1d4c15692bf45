"""The charts with everything running: install, upgrade, roll back, change the mode, uninstall.

Answers kserve#2119, #4710 and #5025 (stuck when uninstalled), kserve PR#5085 and odh-kserve PR#1435 (an
upgrade restarts models), dynamo#3567 (`helm --wait` succeeds on old pods) and kserve#1859 (ready is not).
"""

from __future__ import annotations

import json
import os
import pathlib
import urllib.parse

import openai
import pytest
import yaml
from install import MODEL, NAMESPACE, ROOT, Strata, answers, model
from kube import Kube

pytestmark = pytest.mark.pods

RECORDED = ROOT / "charts/tests/recorded"
# What a namespace has without Strata, and what only time takes away.
NOT_OURS = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
PASSING = {"Event", "PodMetrics"}
# Kept on purpose, and said so in the guide.
KEPT = {("PersistentVolumeClaim", "strata-gateway"), ("PersistentVolumeClaim", "strata-platform")}


def inventory(kube: Kube, *namespaces: str) -> set[tuple[str, str, str]]:
    """Every object in these namespaces, and every object without one that is Strata's, but for definitions."""
    found = set()
    names = kube.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    for namespace in namespaces:
        text = kube.kubectl("get", ",".join(names), "-n", namespace, "-o", "json", "--ignore-not-found", check=False)
        # What cannot be listed (a Role may forbid it, an API may be away) is said below the list.
        items = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["items"] if "{" in text else []
        for item in items:
            found.add((item["kind"], namespace, item["metadata"]["name"]))
    for path in ("clusterroles", "clusterrolebindings"):
        for item in kube.get(f"/apis/rbac.authorization.k8s.io/v1/{path}")["items"]:
            if "strata" in item["metadata"]["name"]:
                found.add((path, "", item["metadata"]["name"]))
    return {
        (kind, where, name)
        for kind, where, name in found
        if kind not in PASSING and (kind, name) not in NOT_OURS and not name.startswith("sh.helm.release.v1.strata-crds.")
    }


def pods(kube: Kube) -> dict[str, dict[str, str]]:
    return {c: kube.uids(NAMESPACE, component=c) for c in ("operator", "gateway", "platform", "scheduler", "engine")}


def settled(kube: Kube) -> dict[str, dict[str, str]]:
    """The pods, once none is on its way in or out."""

    def calm() -> bool:
        items = kube.items(f"/api/v1/namespaces/{NAMESPACE}/pods", {"app.kubernetes.io/name": "strata"})
        ready = lambda p: any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))  # noqa: E731
        return all(ready(p) and not p["metadata"].get("deletionTimestamp") for p in items)

    kube.wait("every pod to be ready and none to leave", calm, 120)
    return pods(kube)


def record(kube: Kube, situation: str, health: str, kind: str, name: str) -> None:
    """With UPDATE=1, keeps an object as the tests of its health judge it (charts/tests/test_health.py)."""
    if not os.environ.get("UPDATE"):
        return
    found = kube.get(kube.path(kind, NAMESPACE, name))
    found["metadata"] = {k: v for k, v in found["metadata"].items() if k in ("name", "generation", "deletionTimestamp")}
    for condition in found.get("status", {}).get("conditions", []):
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    kept = {k: found[k] for k in ("kind", "metadata", "status") if k in found}
    RECORDED.mkdir(exist_ok=True)
    seen = [{"situation": f"recorded: {situation}", "health": health, "object": kept}]
    path = RECORDED / f"{kind}-{situation.replace(' ', '-')}.yaml".lower()
    path.write_text(yaml.safe_dump(seen, sort_keys=False))


@pytest.fixture(autouse=True)
def nothing_left_to_the_next(kube):
    """A test that failed halfway leaves the others an empty namespace."""
    yield
    for kind in ("modeldeployments", "tenants", "quotapolicies"):
        kube.kubectl("delete", f"{kind}.strata.dev", "--all", "-n", NAMESPACE, "--timeout=60s", check=False)
    for release in ("waited", "strata"):
        kube.helm("uninstall", release, "-n", NAMESPACE, "--wait", "--timeout", "60s", check=False)
    everything = "deployments,services,secrets,leases,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
    kube.kubectl("delete", everything, "-n", NAMESPACE, "-l", "app.kubernetes.io/part-of=strata", check=False)
    kube.wait("the pods to go", lambda: not kube.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"], 120)


def tried(call):
    """What the call gives, or None while the chain is not whole: the platform says 503 then, and a Service whose
    one pod was replaced refuses until the node has heard of the new one."""
    try:
        return call()
    except (openai.InternalServerError, openai.APIConnectionError):
        return None


def ask(strata: Strata, key: str | None = None) -> str:
    def answer() -> str:
        given = strata.client(key=key).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
        return given.choices[0].message.content

    return strata.kube.wait("an answer", lambda: tried(answer), 30)


@pytest.mark.parametrize("version", [4, 3])
def test_install_upgrade_rollback_uninstall(kube, strata, version):
    strata.install_crds()
    uri = strata.uri(NAMESPACE)
    clean = inventory(kube, NAMESPACE)
    strata.install(helm=version)
    key = strata.tenant("acme")
    kube.apply(model("smol", uri), namespace=NAMESPACE)
    kube.wait_ready(NAMESPACE, "smol")
    kube.wait("the tenant to be known", lambda: kube.condition("Tenant", NAMESPACE, "acme").get("status") == "True")
    assert ask(strata, key)
    record(kube, "serving", "Healthy", "ModelDeployment", "smol")
    record(kube, "known", "Healthy", "Tenant", "acme")

    # One component's values restart that component alone.
    before = settled(kube)
    strata.install(helm=version, platform={**strata.values()["platform"], "podAnnotations": {"changed": "yes"}})
    after = settled(kube)
    assert {c for c in before if before[c] != after[c]} == {"platform"}
    # So does the undoing of it, and what was stored is still there.
    strata.kube.helm("rollback", "strata", "--namespace", NAMESPACE, "--wait", "--timeout", "120s", version=version)
    undone = settled(kube)
    assert {c for c in after if after[c] != undone[c]} == {"platform"}
    assert ask(strata, key)
    # A new operator restarts no engine and no scheduler.
    strata.install(helm=version, operator={"podAnnotations": {"changed": "yes"}, "env": [{"name": "A", "value": "b"}]})
    renewed = settled(kube)
    assert {c for c in undone if undone[c] != renewed[c]} == {"operator"}

    # In the order of the guide, and in the one that users take who forget it: the chart first. Nothing hangs.
    if version == 3:
        strata.uninstall(helm=version)
    for kind, name in (("modeldeployments", "smol"), ("tenants", "acme")):
        kube.kubectl("delete", f"{kind}.strata.dev", name, "-n", NAMESPACE, "--timeout=30s")
    kube.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/acme-key")
    if version == 4:
        strata.uninstall(helm=version)
    left = lambda: inventory(kube, NAMESPACE) - clean - {(k, NAMESPACE, n) for k, n in KEPT}  # noqa: E731
    try:
        kube.wait("everything to be gone", lambda: not left(), 120)
    except AssertionError as error:
        raise AssertionError(f"left behind: {sorted(left())}") from error
    for claim in ("strata-gateway", "strata-platform"):
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{claim}")


def test_from_mode_to_mode_nothing_is_lost(kube, strata):
    """development → production → enterprise: what the platform stored is read in each."""
    free = {**strata.values()["platform"], "insecureNoAuth": True}
    uri = strata.uri(NAMESPACE)
    strata.install(mode="development", platform=free)
    kube.apply(model("smol", uri), namespace=NAMESPACE)
    kube.wait_ready(NAMESPACE, "smol")
    assert not kube.pods(NAMESPACE, component="scheduler") and not kube.pods(NAMESPACE, component="gateway")
    first = lambda: strata.client().responses.create(model=MODEL, input="Say hello.", max_output_tokens=8).id  # noqa: E731
    stored = [kube.wait("a response", lambda: tried(first), 60)]
    engines = kube.uids(NAMESPACE, component="engine")

    strata.install(mode="production", platform=free)
    kube.wait("two schedulers", lambda: len(settled(kube)["scheduler"]) == 2, 120)
    kube.wait_ready(NAMESPACE, "smol")
    assert kube.uids(NAMESPACE, component="engine") == engines, "a change of mode restarted the engine"
    client = strata.client()
    assert client.responses.retrieve(stored[0]).id == stored[0]
    # The name of a Service that is new here takes seconds to be known everywhere.
    below = urllib.parse.urlsplit(kube.url(NAMESPACE, "strata-platform")).netloc
    kube.wait("the platform to find the layer below", lambda: answers(below, "/ready"), 30)
    again = lambda: client.responses.create(model=MODEL, input="And again.", max_output_tokens=8).id  # noqa: E731
    stored.append(kube.wait("a response through the new chain", lambda: tried(again), 60))

    strata.install(mode="enterprise", enterprise={"localObjectsTenant": "acme"})
    key = strata.tenant("acme")
    other = strata.tenant("other")
    kube.wait_ready(NAMESPACE, "smol")
    assert kube.uids(NAMESPACE, component="engine") == engines, "a change of mode restarted the engine"
    for name in ("acme", "other"):
        ready = lambda: kube.condition("Tenant", NAMESPACE, name).get("status") == "True"  # noqa: E731, B023
        kube.wait(f"the tenant {name}", ready)
    assert ask(strata, key)
    mine, theirs = strata.client(key=key), strata.client(key=other)
    for ident in stored:
        assert mine.responses.retrieve(ident).id == ident
        with pytest.raises(Exception, match="404"):
            theirs.responses.retrieve(ident)
    with pytest.raises(Exception, match="401"):
        strata.client().models.list()


def test_gitops_without_drift(kube, strata, tmp_path):
    """Rendered once and applied by the server, as Argo CD does it: the operator changes nothing of it."""
    strata.install_crds()
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(strata.values()))
    uri = strata.uri(NAMESPACE)
    chart = kube.helm("template", "strata", str(ROOT / "charts/strata"), "-n", NAMESPACE, "-f", str(values))
    examples = []
    for path in sorted((ROOT / "examples/kubernetes").glob("*.yaml")):
        example = yaml.safe_load(path.read_text())
        if example["kind"] == "ModelDeployment":
            example["spec"]["model"]["uri"] = uri
        examples.append(example)
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(chart + "\n---\n" + yaml.safe_dump_all(examples))
    manager = ["--server-side", "--field-manager=argocd-controller", "-n", NAMESPACE, "-f", str(manifests)]
    kube.kubectl("apply", *manager)
    name = next(e["metadata"]["name"] for e in examples if e["kind"] == "ModelDeployment")
    kube.wait_ready(NAMESPACE, name, 120)
    kube.wait("the policy", lambda: kube.condition("QuotaPolicy", NAMESPACE, "gold").get("status") == "True")
    record(kube, "in force", "Healthy", "QuotaPolicy", "gold")
    settled(kube)
    # The chart makes no Lease, which Argo CD would pass over: the operator's own goes with its account.
    lease = "/apis/coordination.k8s.io/v1/namespaces/strata/leases/strata-operator"
    assert [o["kind"] for o in kube.get(lease)["metadata"]["ownerReferences"]] == ["ServiceAccount"]
    # kubectl diff exits 1 and prints when anything differs; no --force-conflicts: nobody took a field.
    assert kube.kubectl("diff", *manager) == ""
    versions = lambda: {  # noqa: E731
        (o["kind"], o["metadata"]["name"]): o["metadata"]["generation"]
        for o in json.loads(kube.kubectl("get", "-o", "json", "-n", NAMESPACE, "-f", str(manifests)))["items"]
        if "generation" in o["metadata"]
    }
    before = versions()
    kube.kubectl("apply", *manager)
    assert versions() == before
    # As a GitOps tool deletes an application: all at once. An operator that is ending makes nothing again.
    kube.kubectl("delete", "-n", NAMESPACE, "-f", str(manifests), "--timeout=120s", "--ignore-not-found")
    kube.wait("the operators to end", lambda: not kube.items(f"/api/v1/namespaces/{NAMESPACE}/pods", "app.kubernetes.io/component=operator"), 60)
    assert kube.find("/api/v1/namespaces/strata/secrets/strata-hop") is None
    kube.wait("the Lease to be collected", lambda: kube.find(lease) is None, 60)


MODEL_CHART = """apiVersion: v2
name: model
version: 0.1.0
"""


def model_chart(folder: pathlib.Path, body: dict) -> pathlib.Path:
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "Chart.yaml").write_text(MODEL_CHART)
    (folder / "templates/model.yaml").write_text(yaml.safe_dump(body))
    return folder


def test_helm_wait_judges_models_right(kube, strata, tmp_path):
    """`helm --wait` (Helm 4: kstatus) ends when the model serves, not before, and fails when it cannot."""
    strata.install()
    uri = strata.uri(NAMESPACE)
    chart = model_chart(tmp_path / "model", model("waited", uri))
    install = ["upgrade", "--install", "waited", str(chart), "-n", NAMESPACE, "--wait"]
    kube.helm(*install, "--timeout", "90s")
    assert kube.condition("ModelDeployment", NAMESPACE, "waited")["status"] == "True"
    # A change that does not load: the upgrade fails, and what ran goes on.
    engines = kube.uids(NAMESPACE, component="engine")
    broken = model("waited", uri.rsplit("/", 1)[0] + "/no-such.gguf")
    model_chart(tmp_path / "model", broken)
    out = kube.helm(*install, "--timeout", "20s", check=False)
    assert "UPGRADE FAILED" in out, out
    assert set(engines.values()) <= set(kube.uids(NAMESPACE, component="engine").values()), "the old revision was taken down"
    kube.wait(
        "the failure to be said",
        lambda: any(
            c["type"] == "Stalled" and c["status"] == "True"
            for c in kube.get(kube.path("ModelDeployment", NAMESPACE, "waited"))["status"]["conditions"]
        ),
        60,
    )
    record(kube, "does not load", "Degraded", "ModelDeployment", "waited")
    kube.helm("rollback", "waited", "-n", NAMESPACE, "--wait", "--timeout", "90s")
    assert kube.condition("ModelDeployment", NAMESPACE, "waited")["status"] == "True"
    kube.helm("uninstall", "waited", "-n", NAMESPACE, "--wait", "--timeout", "60s")
