"""Everything that is rendered or shown as an example fits the API server's own schemas, strictly."""

import pytest
import yaml
from conftest import K8S, ROOT, arguments_of, rendered_by_operator, unavailable, values_of


def test_the_check_sees_what_is_wrong(kubeconform):
    good = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 1}]}}
    assert kubeconform(yaml.safe_dump(good)) == ""
    assert "port" in kubeconform(yaml.safe_dump(good | {"spec": {"ports": [{"port": "x"}]}}))
    assert "prots" in kubeconform(yaml.safe_dump(good | {"spec": {"prots": []}}))
    tenant = {"apiVersion": "strata.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "a"}, "spec": {"tire": "x"}}
    assert "tire" in kubeconform(yaml.safe_dump(tenant))
    assert kubeconform(yaml.safe_dump(tenant | {"kind": "Nothing"})) != ""


def test_chart(helm, kubeconform, case):
    # Of the Prometheus operator's kinds there is no definition here.
    rendered = helm.template("strata", values_of(case), *arguments_of(case))
    assert kubeconform(rendered, skip="ServiceMonitor,PodMonitor" + ("" if has_routes() else ",HTTPRoute,ReferenceGrant")) == ""


def has_routes() -> bool:
    """Whether the definitions of the Gateway API are at hand."""
    return any("httproutes" in p.name for p in (K8S / "crds").rglob("*.yaml"))


def test_definitions(helm, kubeconform):
    assert kubeconform(helm.template("strata-crds")) == ""


@pytest.mark.parametrize("path", sorted((ROOT / "examples/kubernetes").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples(kubeconform, path):
    assert kubeconform(path.read_text()) == ""


def test_argo_cd_settings(kubeconform):
    assert kubeconform((ROOT / "examples/argocd/argocd-cm.yaml").read_text()) == ""


@pytest.mark.parametrize("name,obj", rendered_by_operator(), ids=lambda v: v if isinstance(v, str) else v["kind"])
def test_what_the_operator_renders(kubeconform, name, obj):
    # KEDA's definitions are not at hand.
    assert kubeconform(yaml.safe_dump(obj), skip="ScaledObject") == ""


def with_defaults(schema: dict, value: object) -> object:
    """A value as the API server stores it: with the defaults of its definition."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        out = {name: with_defaults(known.get(name, {}), member) for name, member in value.items()}
        return out | {name: s["default"] for name, s in known.items() if "default" in s and name not in value}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), member) for member in value]
    return value


def definition_of(kind: str, version: str) -> dict:
    for path in sorted((K8S / "crds").rglob("*.yaml")):
        for definition in yaml.safe_load_all(path.read_text()):
            if definition and definition.get("kind") == "CustomResourceDefinition" and definition["spec"]["names"]["kind"] == kind:
                (found,) = [v for v in definition["spec"]["versions"] if v["name"] == version]
                return found["schema"]["openAPIV3Schema"]["properties"]["spec"]
    unavailable(f"the definition of {kind} is not there; run `make k8s` once")


def test_the_check_of_defaults_sees():
    spec = {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": [{"name": "a", "port": 1}]}]}
    full = with_defaults(definition_of("HTTPRoute", "v1"), spec)
    assert full["parentRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}]
    assert full["rules"][0]["backendRefs"] == [{"group": "", "kind": "Service", "name": "a", "port": 1, "weight": 1}]


def test_routes_do_not_drift(helm, case):
    """Argo CD compares with what is stored: a default that is not written out is drift for ever."""
    objects = helm.objects("strata", values_of(case), *arguments_of(case))
    routes = [o for o in objects if o["kind"] in ("HTTPRoute", "ReferenceGrant")]
    assert len(routes) == (3 if case.stem == "everything" else 0)
    for obj in routes:
        schema = definition_of(obj["kind"], obj["apiVersion"].rpartition("/")[2])
        assert with_defaults(schema, obj["spec"]) == obj["spec"], obj["metadata"]["name"]


def test_parents_are_taken_as_they_are_given(helm):
    given = [
        {"name": "public", "namespace": "ingress", "sectionName": "https"},
        {"name": "mesh", "group": "", "kind": "Service", "port": 80},
        {"name": "other", "kind": "XGateway"},
    ]
    values = {"platform": {"httpRoute": {"enabled": True, "parentRefs": given}}}
    (route,) = [o for o in helm.objects("strata", values) if o["kind"] == "HTTPRoute"]
    known = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    assert route["spec"]["parentRefs"] == [known | parent for parent in given]
