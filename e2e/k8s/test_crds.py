"""The CustomResourceDefinitions before a real API server: each rule refuses what it must, and says so.

Answers kserve#3487 and #1296 (definitions too large to apply), kubeai#213 (definitions that no upgrade
reaches) and kubeai#25 (no usable scale subresource).
"""

from __future__ import annotations

import copy
import json
import pathlib

import pytest
import yaml
from install import ROOT, model, policy, tenant
from kube import KINDS, ApiError

pytestmark = pytest.mark.control_plane

NAMESPACE = "default"
CRDS = {
    crd["spec"]["names"]["kind"]: crd
    for crd in map(yaml.safe_load, map(pathlib.Path.read_text, sorted((ROOT / "crds").glob("*.yaml"))))
}
# A client-side apply keeps the whole object in an annotation, which has room for 262,144 bytes.
LIMIT_BYTES = 200_000

REMOVE = object()


def put(thing: dict, place: str, value: object) -> dict:
    """A copy of the object with a value at `a.b[].c` (or `a.b.0.c`), or with what is there removed."""
    thing = copy.deepcopy(thing)
    *parents, last = place.replace("[]", ".0").split(".")
    at = thing
    for step in parents:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    key = int(last) if last.isdigit() else last
    if value is REMOVE:
        at.pop(key, None)
    else:
        at[key] = value
    return thing


POD = {
    "labels": {"team": "a"}, "serviceAccountName": "sa", "priorityClassName": "high", "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "A", "value": "b"}],
    "resources": {"requests": {"cpu": "2"}, "limits": {"nvidia.com/gpu": 2}},
}  # fmt: skip
CUSTOM = {"runtime": "Custom", "image": "example/server:1", "command": ["serve"], "args": ["--port", "8000"]}
GOOD = {
    "ModelDeployment": [
        model("plain", "file:///models/a.gguf"),
        {"apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "least"},
         "spec": {"model": {"name": "m", "uri": "pvc://models/a.gguf"}}},
        *(model(f"uri-{n}", uri) for n, uri in enumerate([
            "/models/a.gguf", "file:///models/a.gguf", "hf://owner/name", "hf://owner/name/file.gguf@main",
            "oci://registry.example:5000/team/model:v1", "oci://r.example/m@sha256:" + "0" * 64, "s3://bucket/models/a",
            "pvc://claim", "pvc://claim/folder/a.gguf", "https://host.example/a.gguf#sha256=" + "0" * 64])),
        model("scaled", "hf://owner/name", None, autoscaling={"min": 0, "max": 3, "sleepAfter": "10m", "targetKvUsage": 60}),
        put(model("custom", "file:///models/a.gguf"), "spec.engine", CUSTOM),
        model("full", "hf://owner/name", model={
            "name": "m", "uri": "hf://owner/name", "revision": "v1", "cache": {"claimName": "cache"},
            "credentialsSecretRef": {"name": "token"}},
            adapters=[{"name": "style", "uri": "hf://owner/style", "credentialsSecretRef": {"name": "token"}}],
            engine={"runtime": "Vllm", "image": "example/vllm:1", "kvCache": {"memory": "2Gi"}, "startupTimeout": "20m"},
            parallelism={"tensor": 2, "data": 2, "expert": 4}, rollout={"maxSurge": 0, "maxUnavailable": "25%"},
            podTemplate=POD,
            prefill={"podTemplate": POD, "parallelism": {"tensor": 2}}),
    ],
    "Tenant": [
        tenant("plain"),
        tenant("full", tier="gold", timeZone="America/Argentina/Buenos_Aires", models=["smol-*"],
               apiKeys=[{"name": "ci", "secretRef": {"name": "s"}, "expiresAt": "2030-01-01T00:00:00Z"}]),
    ],
    "QuotaPolicy": [
        policy("plain", limits=[{"resource": "Requests", "limit": 1, "window": "1m"}]),
        policy("full", selector={"tiers": ["gold"], "tenants": ["a-*"], "models": ["*"]},
               limits=[{"resource": "Tokens", "limit": 1, "window": "1m", "onExceed": "Fallback", "fallbackModel": "m"}],
               budget={"tokens": 1, "period": "Month"},
               pricing=[{"model": "*", "input": "0.25", "output": "1", "cachedInput": "0.01", "currency": "EUR"}],
               objectives={"ttft": "500ms", "tpot": "50ms", "availability": "99.9%"}),
        policy("money", budget={"amount": "10.50", "period": "Day"}),
    ],
}  # fmt: skip

# What each rule must refuse: kind -> place of the rule in the schema -> a value to put there, or a change
# of the whole object. Rules that many fields share by their form are covered by FORMS.
BAD = {
    "ModelDeployment": {
        "": {"metadata.name": "1st"},
        "spec": [
            {"spec.replicas": 1, "spec.autoscaling": {"min": 1, "max": 2}},
            {"spec.engine.runtime": "Native"},
            {"spec.engine": CUSTOM},
            {"spec.engine.device": "Cpu"},
            {"spec.adapters.0.name": "m"},
        ],
        "spec.adapters[].uri": ["ftp://host/x", "hf://owner/../x"],
        "spec.autoscaling": [
            {"spec.replicas": REMOVE, "spec.autoscaling": {"min": 3, "max": 2}},
            {"spec.replicas": REMOVE, "spec.autoscaling": {"min": 1, "max": 2, "sleepAfter": "5m"}}],
        "spec.autoscaling.sleepAfter": {
            "spec.replicas": REMOVE, "spec.autoscaling": {"min": 0, "max": 2, "sleepAfter": "soon"}},
        "spec.engine": [
            {"spec.engine.image": REMOVE}, {"spec.engine.command": ["serve"]}, {"spec.engine.runtime": "Custom"}],
        "spec.engine.kvCache": {"spec.engine.kvCache": {"memory": "1Gi", "blocks": 5}},
        "spec.engine.kvCache.memory": ["much"],
        "spec.model": {"spec.model.uri": "pvc://models/a.gguf"},
        "spec.model.cache": [{}],
        "spec.parallelism": [{"tensor": 2, "expert": 3}],
        "spec.prefill.parallelism": [{"tensor": 2, "expert": 3}],
        "spec.podTemplate.resources": [{"requests": {"nvidia.com/gpu": 1}}],
        "spec.prefill.podTemplate.resources": [{"requests": {"nvidia.com/gpu": 1}}],
        "spec.routing.sessionHeader": {"spec.routing": {"sessionHeader": "X Chat"}},
        "spec.rollout": [{"maxSurge": 0, "maxUnavailable": "0%"}],
        "spec.rollout.maxSurge": ["some"],
        "spec.rollout.maxUnavailable": ["120%"],
        "spec.model.uri": ["ftp://host/x", "file:///models/../etc"],
        "spec.model.revision": ["../x"],
        "spec.podTemplate.env[]": [{"name": "A"}],
        "spec.podTemplate.env[].name": ["1A", "STRATA_X"],
        "spec.podTemplate.labels": [{"strata.dev/x": "y"}],
        "spec.prefill.podTemplate.env[]": [{"name": "A"}],
        "spec.prefill.podTemplate.env[].name": ["1A", "STRATA_X"],
        "spec.prefill.podTemplate.labels": [{"app.kubernetes.io/name": "y"}],
    },
    "Tenant": {"": {"metadata.name": "1st"}, "spec.models": [["a b"]], "spec.tier": ["Gold"], "spec.timeZone": ["../x"]},
    "QuotaPolicy": {
        "": {"metadata.name": "1st"},
        "spec.budget": [{"spec.budget.amount": "1"}, {"spec.budget.tokens": REMOVE}],
        "spec.budget.amount": {"spec.budget": {"amount": "much", "period": "Day"}},
        "spec.limits[]": {"spec.limits.0.fallbackModel": REMOVE},
        "spec.limits[].window": ["1w"],
        "spec.selector.models": [["a b"]],
        "spec.selector.tenants": [["a b"]],
        "spec.selector.tiers": [["a b"]],
        "spec.objectives.availability": ["101%"],
        "spec.pricing[].currency": ["eur"],
    },
}  # fmt: skip
# Rule message begins with -> a value that it refuses.
FORMS = {
    "must be the name of an object": "Not_A_Name",
    "must be letters, digits, '.'": "-a",
    "must be lower-case letters": "A B",
    "must be a decimal number": "1,5",
    "must be a whole number with": "5 minutes",
    "must be a name, with *": "a b",
}
# An update alone can break these.
TRANSITIONS = {("ModelDeployment", "spec.model.name"): "another"}


def rules():
    """Every CEL rule of every kind: (kind, place, message)."""

    def walk(schema: dict, place: str):
        for rule in schema.get("x-kubernetes-validations", []):
            yield place, rule["message"], "oldSelf" in rule["rule"]
        for name, inner in schema.get("properties", {}).items():
            if not place and name not in ("spec", "status"):
                continue
            yield from walk(inner, f"{place}.{name}" if place else name)
        if isinstance(schema.get("items"), dict):
            yield from walk(schema["items"], f"{place}[]")

    for kind, crd in CRDS.items():
        for place, message, transition in walk(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], ""):
            yield kind, place, message, transition


def bad_objects(kind: str, place: str, message: str):
    full = next(g for g in GOOD[kind] if g["metadata"]["name"] == "full")
    given = BAD[kind].get(place)
    if given is None:
        form = next((value for begin, value in FORMS.items() if message.startswith(begin)), None)
        given = [] if form is None else [form]
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, dict) and one and all("." in key and key.split(".")[0] in ("spec", "metadata") for key in one):
            thing = full
            for where, value in one.items():
                thing = put(thing, where, value)
            yield thing
        else:
            yield put(full, place, one)


@pytest.fixture(scope="module")
def served(kube):
    """The definitions as a user applies them, client-side, and the API server serving them."""
    kube.kubectl("apply", "-f", str(ROOT / "crds"))
    kube.kubectl("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{p}.strata.dev" for p in KINDS.values()))
    kube.wait("the three kinds to be served", lambda: all(kube.find(kube.path(k, NAMESPACE)) for k in KINDS))
    return kube


def dry_run(kube, thing: dict) -> dict:
    path = kube.path(thing["kind"], NAMESPACE)
    return kube.call("POST", f"{path}?dryRun=All&fieldValidation=Strict", thing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_small(kind):
    """kserve#3487, #1296: over 262,144 bytes a client-side apply and Argo CD's default fail."""
    assert len(json.dumps(CRDS[kind])) < LIMIT_BYTES


@pytest.mark.parametrize("thing", [t for ts in GOOD.values() for t in ts], ids=lambda t: f"{t['kind']}-{t['metadata']['name']}")
def test_a_good_object_is_taken(served, thing):
    """Strictly: no field of it is unknown, and no rule refuses what the documentation allows."""
    made = dry_run(served, thing)
    assert made["status"] == {"observedGeneration": -1}, "kstatus takes an object without a status for a healthy one"
    spec, was = json.dumps(made["spec"], sort_keys=True), json.dumps(thing["spec"], sort_keys=True)
    assert set(thing["spec"]) <= set(made["spec"]), f"{was} became {spec}"


@pytest.mark.parametrize(("kind", "place", "message", "transition"), list(rules()))
def test_a_rule_refuses_and_says_why(served, kind, place, message, transition):
    """Every CEL rule, by an object that breaks it: the refusal carries the place and the rule's message."""
    if transition:
        return refused_update(served, kind, place, message)
    answers = []
    for thing in bad_objects(kind, place, message):
        with pytest.raises(ApiError) as refusal:
            dry_run(served, thing)
        assert refusal.value.status == 422, refusal.value
        answers.append(refusal.value.message)
    assert answers, f"no bad object for the rule at {kind} {place or 'root'}: add one to BAD or FORMS"
    where = place.replace("[]", "[0]")
    assert any(message in a and where in a for a in answers), f"{message!r} at {where!r} is in none of {answers}"
    return None


def refused_update(kube, kind: str, place: str, message: str) -> None:
    full = next(g for g in GOOD[kind] if g["metadata"]["name"] == "full")
    kube.apply(full, namespace=NAMESPACE)
    path = kube.path(kind, NAMESPACE, "full")
    try:
        changed = put({"spec": kube.get(path)["spec"]}, place, TRANSITIONS[kind, place])
        with pytest.raises(ApiError) as refusal:
            kube.patch(path, changed)
        assert message in refusal.value.message and place in refusal.value.message
    finally:
        kube.delete(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_named(served, kind):
    """A typing error must not be dropped in silence."""
    with pytest.raises(ApiError) as refusal:
        dry_run(served, put(GOOD[kind][0], "spec.replikas", 3))
    assert 'unknown field "spec.replikas"' in refusal.value.message


def test_scale_has_a_selector(served):
    """kubeai#25: an autoscaler needs /scale, with a selector that finds the pods."""
    path = served.path("ModelDeployment", NAMESPACE, "plain")
    served.apply(GOOD["ModelDeployment"][0], namespace=NAMESPACE)
    try:
        served.patch(f"{path}/scale", {"spec": {"replicas": 4}})
        assert served.get(path)["spec"]["replicas"] == 4
        status = {"status": {"observedGeneration": 1, "replicas": 2, "selector": "strata.dev/model-deployment=plain"}}
        served.patch(f"{path}/status", status)
        scale = served.get(f"{path}/scale")
        assert scale["status"] == {"replicas": 2, "selector": "strata.dev/model-deployment=plain"}
    finally:
        served.delete(path)


def test_two_owners_of_a_keyed_list(served):
    """Lists with a key merge under server-side apply: two managers each own their own entry."""
    path = served.path("ModelDeployment", NAMESPACE, "shared")

    def entry(manager: str, name: str) -> None:
        thing = model("shared", "file:///models/a.gguf", podTemplate={"env": [{"name": name, "value": manager}]})
        body = served.request(
            "PATCH", f"{path}?fieldManager={manager}&force=true", thing, "application/apply-patch+yaml"
        )
        assert body[0] in (200, 201), body

    try:
        entry("one", "A")
        entry("two", "B")
        env = served.get(path)["spec"]["podTemplate"]["env"]
        assert sorted(e["name"] for e in env) == ["A", "B"]
    finally:
        served.delete(path)


def test_kubectl_lists_the_category(served):
    """`kubectl get strata` lists all three kinds, with the columns of each."""
    things = [GOOD[kind][0] for kind in KINDS]
    served.apply(*things, namespace=NAMESPACE)
    try:
        shown = served.kubectl("get", "strata", "--namespace", NAMESPACE)
        for kind in KINDS:
            assert f"{KINDS[kind][:-1].replace('policie', 'policy')}.strata.dev/plain" in shown
        assert "READY" in shown and "REASON" in shown and "REPLICAS" in shown
    finally:
        for kind in KINDS:
            served.delete(served.path(kind, NAMESPACE, "plain"))
