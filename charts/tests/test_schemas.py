"""Everything that is rendered or shown as an example fits the API server's own schemas, strictly."""

import pytest
import yaml
from conftest import CACHE, ROOT, arguments_of, rendered_by_operator, values_of


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
    return any("httproutes" in p.name for p in (CACHE / "k8s/crds").rglob("*.yaml"))


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
