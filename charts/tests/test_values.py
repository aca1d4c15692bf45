"""Bad values are refused, in words that say which and what to do."""

import json
import re

import pytest
import yaml
from conftest import CHARTS, Refused

OPEN = {"platform": {"insecureNoAuth": True}}

BAD = {
    "a mode that is none": ({"mode": "prod"}, r"/mode.*development.*production.*enterprise"),
    "an unknown value": ({"replicas": 2}, r"additional properties 'replicas' not allowed"),
    "an unknown value in a group": ({"gateway": {"replica": 1}}, r"/gateway.*additional properties 'replica'"),
    "two gateways on one SQLite ledger": ({"gateway": {"replicas": 2}}, r"/gateway/replicas.*maximum: got 2, want 1"),
    "two platforms on one SQLite store": ({"platform": {"replicas": 2}}, r"/platform/replicas.*maximum"),
    "a number as a tag": ({"image": {"tag": 1.0}}, r"/image/tag.*got number, want string"),
    "half a digest": ({"image": {"digest": "sha256:12"}}, r"/image/digest.*does not match pattern"),
    "a namespace in capitals": ({"modelNamespaces": ["Models"]}, r"/modelNamespaces/0.*does not match pattern"),
    "a namespace twice": ({"modelNamespaces": ["a", "a"]}, r"/modelNamespaces.*items at 0 and 1 are equal"),
    "a size that is none": ({"gateway": {"persistence": {"size": "big"}}}, r"/gateway/persistence/size"),
    "an amount that is none": (
        {"platform": {"resources": {"limits": {"memory": "lots"}}}},
        r"/platform/resources/limits/memory.*does not match pattern",
    ),
    "a toleration's typo": ({"operator": {"tolerations": [{"keys": "x"}]}}, r"tolerations/0.*'keys' not allowed"),
    "an API server on no port": ({"networkPolicy": {"apiServer": {"ports": []}}}, r"/networkPolicy/apiServer/ports"),
    "production that all may use, unsaid": ({"mode": "production"}, r"nothing checks who calls.*insecureNoAuth=true"),
    "development that all may use, unsaid": ({"mode": "development"}, r"nothing checks who calls.*insecureNoAuth"),
    "certificates that are neither wanted nor not": ({"internalTls": "yes"}, r"/internalTls.*got string, want boolean"),
    "no entrance": (
        {"mode": "production", "platform": {"insecureNoAuth": True, "enabled": False}},
        r"has no entrance.*platform.enabled=true",
    ),
    "a tenant in a mode without": (
        {"mode": "production", "enterprise": {"localObjectsTenant": "acme"}, **OPEN},
        r"localObjectsTenant is set, but mode is production",
    ),
    "a platform without models": (
        {"mode": "production", "modelNamespaces": ["models"], **OPEN},
        r'models of namespace "strata", which is not in modelNamespaces.*platform.modelNamespace',
    ),
    "metrics that nobody is let in to read": (
        {"serviceMonitor": {"enabled": True}},
        r"serviceMonitor.enabled is set, but the NetworkPolicies let no Prometheus.*metricsNamespaces",
    ),
    "a picker where there is none": (
        {"mode": "development", "operator": {"picker": {"enabled": True}}, **OPEN},
        r"mode development has no scheduler that could be asked",
    ),
    "proxies that may ask nobody": (
        {"operator": {"picker": {"from": [{"podSelector": {}}]}}},
        r"operator.picker.from is set, but nobody can ask.*operator.picker.enabled=true",
    ),
    "a proxy that is none": (
        {"operator": {"picker": {"enabled": True, "from": [{"pods": {}}]}}},
        r"/operator/picker/from/0.*'pods' not allowed",
    ),
    "a pod that is another's": (
        {"gateway": {"podLabels": {"app.kubernetes.io/component": "platform"}}},
        r"gateway.podLabels sets app.kubernetes.io/component.*Remove it",
    ),
    "an operator by another name": (
        {"operator": {"podLabels": {"a": "b", "app.kubernetes.io/name": "x"}}},
        r"operator.podLabels sets app.kubernetes.io/name",
    ),
    "a label of the chart's": (
        {"extraLabels": {"app.kubernetes.io/name": "x"}},
        r"extraLabels sets app.kubernetes.io/name, which is the chart's own",
    ),
    "a route to nowhere": ({"gateway": {"httpRoute": {"enabled": True}}}, r"needs gateway.httpRoute.parentRefs"),
    "a grace that is used up": (
        {"platform": {"terminationGracePeriodSeconds": 5}},
        r"platform.terminationGracePeriodSeconds \(5\) must be more than platform.preStopSeconds \(5\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(each_helm, name):
    values, message = BAD[name]
    with pytest.raises(Refused) as refused:
        each_helm.template("strata", values)
    assert re.search(message, str(refused.value), re.DOTALL), refused.value


def test_every_label_of_the_charts_own_is_refused(helm):
    """Twice in one object, one of them would be lost."""
    values = {"extraLabels": {"a": "b"}, "gateway": {"podLabels": {"a": "b"}}}
    (gateway,) = [o for o in helm.objects("strata", values) if o["kind"] == "Deployment" and o["metadata"]["name"] == "strata-gateway"]
    for label in gateway["metadata"]["labels"].keys() - {"a"}:
        with pytest.raises(Refused, match="extraLabels sets"):
            helm.template("strata", {"extraLabels": {label: "x"}})
    for label in gateway["spec"]["template"]["metadata"]["labels"].keys() - {"a"}:
        with pytest.raises(Refused, match="gateway.podLabels sets"):
            helm.template("strata", {"gateway": {"podLabels": {label: "x"}}})


def test_refused_by_the_definitions_chart(each_helm):
    with pytest.raises(Refused, match="'keeps' not allowed"):
        each_helm.template("strata-crds", {"keeps": True})


@pytest.mark.parametrize("chart", ["strata", "strata-crds"])
def test_every_value_is_typed_and_described(chart):
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())

    def check(path: str, node: dict) -> None:
        assert node.get("description") or path == "", f"{path} has no description"
        assert {"type", "enum", "allOf", "$ref"} & node.keys(), f"{path} has no type"
        if "properties" in node:
            assert node.get("additionalProperties") is False or "#" in path, f"{path} takes unknown keys"
        for name, child in node.get("properties", {}).items():
            check(f"{path}.{name}", child)
        if isinstance(node.get("items"), dict) and "properties" in node["items"]:
            for name, child in node["items"]["properties"].items():
                check(f"{path}#.{name}", child)

    check("", schema)
    for name, definition in schema["definitions"].items():
        check(f"#{name}", definition)


@pytest.mark.parametrize("chart", ["strata", "strata-crds"])
def test_every_value_is_documented_in_its_place(chart):
    """values.yaml holds every value, each below a comment, and with the schema's defaults."""
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())

    def defaults(node: dict) -> object:
        if "default" in node:
            return node["default"]
        return {name: defaults(child) for name, child in node["properties"].items()}

    expected = defaults(schema)
    del expected["global"]
    text = (CHARTS / chart / "values.yaml").read_text()
    assert yaml.safe_load(text) == expected
    before = ""
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("#"):
            assert before.strip().startswith("#"), f"{line.strip()} has no comment"
        before = line
