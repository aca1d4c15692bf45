"""The charts before a real API server: strict dry runs, PodSecurity, least privilege, an upgrade and its undoing.

Needs no running pod: kwok plays the nodes where there is no node. Answers kubeai#213 and kserve#5412
(definitions that Helm installs once and never upgrades).
"""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest
import yaml
from driver import binaries
from install import NAMESPACE, ROOT

pytestmark = pytest.mark.control_plane

CASES = sorted((ROOT / "charts/tests/cases").glob("*.yaml"))
# The rendering is that of the charts' own tests.
_spec = importlib.util.spec_from_file_location("charts_conftest", ROOT / "charts/tests/conftest.py")
charts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(charts)


def rendered(case: pathlib.Path) -> list[dict]:
    helm = charts.Helm(str(binaries.path_of("helm4")))
    objects = helm.objects("strata", charts.values_of(case), *charts.arguments_of(case))
    # Of the Prometheus operator's kinds there is no definition here.
    return [o for o in objects if o["kind"] not in ("ServiceMonitor", "PodMonitor")]


@pytest.fixture(scope="module")
def prepared(kube):
    """Namespaces, the definitions of the Gateway API, and ours by their chart."""
    for name in ("strata", "models", "models-a", "models-b"):
        kube.namespace(name)
    for kind in ("httproutes", "referencegrants"):
        definition = next((charts.K8S / "crds").rglob(f"*_{kind}.yaml"))
        kube.kubectl("apply", "--server-side", "-f", str(definition))
        listed = "/apis/gateway.networking.k8s.io/v1beta1/" + kind
        kube.wait(f"{kind} to be served", lambda: kube.find(listed))  # noqa: B023
    kube.helm("upgrade", "--install", "strata-crds", str(ROOT / "charts/strata-crds"), "-n", NAMESPACE, "--wait")
    return kube


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_strict_dry_run(prepared, case):
    text = yaml.safe_dump_all(rendered(case))
    out = prepared.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"), stdin=text
    )
    assert len(out.splitlines()) == len(rendered(case))


def test_pod_security_restricted(prepared):
    """Every pod that the charts or the operator make is taken by a namespace that demands `restricted`."""
    namespace = "restricted"
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    prepared.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": label}})
    pods = [(case.stem, o) for case in CASES for o in rendered(case) if o["kind"] == "Deployment"]
    pods += [
        (name, o)
        for name, o in charts.rendered_by_operator()
        if "containers" in o.get("spec", {}).get("template", {}).get("spec", {})
    ]
    assert len(pods) > len(CASES)
    path = f"/api/v1/namespaces/{namespace}"
    accounts = {o["spec"]["template"]["spec"].get("serviceAccountName", "default") for _, o in pods}
    for account in accounts - {"default"}:
        prepared.call("POST", f"{path}/serviceaccounts", {"metadata": {"name": account}})
    prepared.wait("the default account", lambda: prepared.find(f"{path}/serviceaccounts/default"))
    for origin, deployment in pods:
        template = deployment["spec"]["template"]
        # Both name what is not in this cluster.
        spec = {**template["spec"], "priorityClassName": None, "runtimeClassName": None}
        pod = {"metadata": {"name": "x", "labels": template["metadata"]["labels"]}, "spec": spec}
        status, text = prepared.request("POST", f"{path}/pods?dryRun=All&fieldValidation=Strict", pod)
        assert status == 201, f"{origin}, {deployment['metadata']['name']}: {text}"
    bad = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    status, text = prepared.request("POST", f"{path}/pods?dryRun=All", bad)
    assert status == 403 and "restricted" in text


@pytest.fixture(scope="module")
def installed(prepared, strata):
    """Strata's objects; nothing is waited for."""
    strata.install(wait=False)
    yield prepared
    strata.uninstall()


def may(kube, account: str, verb: str, resource: str, group: str = "", namespace: str = NAMESPACE, name: str = "") -> bool:
    attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace, "name": name}
    if "/" in resource:
        attributes["resource"], attributes["subresource"] = resource.split("/")
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{NAMESPACE}:{account}", "resourceAttributes": attributes},
    }
    return kube.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)["status"]["allowed"]


@pytest.mark.parametrize(
    "account,verb,resource,group,where",
    [
        ("strata-operator", "watch", "modeldeployments", "strata.dev", ""),
        ("strata-operator", "patch", "modeldeployments/status", "strata.dev", "models"),
        ("strata-operator", "patch", "deployments", "apps", "models"),
        ("strata-operator", "get", "secrets", "", "strata:strata-hop"),
        ("strata-operator", "create", "secrets", "", "models:strata-hop"),
        ("strata-operator", "create", "leases", "coordination.k8s.io", "strata"),
        ("strata-operator", "update", "leases", "coordination.k8s.io", "strata:strata-operator"),
        ("strata-operator", "get", "serviceaccounts", "", "strata:strata-operator"),
        ("strata-operator", "watch", "customresourcedefinitions", "apiextensions.k8s.io", ""),
        ("strata-gateway", "watch", "tenants", "strata.dev", "strata"),
        ("strata-gateway", "watch", "secrets", "", "strata"),
        ("strata-gateway", "watch", "endpointslices", "discovery.k8s.io", "models"),
    ],
)
def test_what_they_may(installed, account, verb, resource, group, where):
    namespace, _, name = where.partition(":")
    assert may(installed, account, verb, resource, group, namespace, name)


@pytest.mark.parametrize(
    "account,verb,resource,group,where",
    [
        # Spec is the user's.
        ("strata-operator", "patch", "modeldeployments", "strata.dev", "models"),
        ("strata-operator", "update", "tenants", "strata.dev", "strata"),
        ("strata-operator", "delete", "modeldeployments", "strata.dev", "models"),
        # Secrets by one name.
        ("strata-operator", "list", "secrets", "", "models"),
        ("strata-operator", "get", "secrets", "", "strata:acme-key"),
        ("strata-operator", "get", "secrets", "", "models:hf-token"),
        ("strata-operator", "create", "secrets", "", "models"),
        ("strata-operator", "create", "secrets", "", "models:hf-token"),
        ("strata-operator", "update", "leases", "coordination.k8s.io", "strata:another"),
        # What the chart makes and takes away, no operator that is about to end makes again.
        ("strata-operator", "create", "secrets", "", "strata"),
        # Nothing that reaches further.
        ("strata-operator", "create", "pods", "", "models"),
        ("strata-operator", "create", "pods/exec", "", "models"),
        ("strata-operator", "create", "clusterroles", "rbac.authorization.k8s.io", ""),
        ("strata-operator", "escalate", "roles", "rbac.authorization.k8s.io", "models"),
        ("strata-operator", "bind", "roles", "rbac.authorization.k8s.io", "models"),
        ("strata-operator", "impersonate", "users", "", ""),
        ("strata-operator", "patch", "customresourcedefinitions", "apiextensions.k8s.io", ""),
        ("strata-operator", "get", "nodes", "", ""),
        # The gateway reads, and Secrets only in Strata's own namespace.
        ("strata-gateway", "get", "secrets", "", "models:hf-token"),
        ("strata-gateway", "patch", "tenants/status", "strata.dev", "strata"),
        ("strata-gateway", "create", "secrets", "", "strata"),
        ("strata-gateway", "list", "pods", "", "models"),
        # The platform knows no Kubernetes.
        ("strata-platform", "get", "pods", "", "strata"),
        ("strata-platform", "list", "modeldeployments", "strata.dev", "strata"),
    ],
)
def test_what_they_may_not(installed, account, verb, resource, group, where):
    namespace, _, name = where.partition(":")
    assert not may(installed, account, verb, resource, group, namespace, name)


def test_the_operator_can_hand_out_no_more_than_it_has(installed):
    """It makes Roles for schedulers; one with rights beyond its own is refused by the API server."""

    def role(resource: str, group: str) -> str:
        rules = [{"apiGroups": [group], "resources": [resource], "verbs": ["get", "list", "watch"]}]
        body = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "strata-scheduler", "namespace": "models"},
            "rules": rules,
        }
        return installed.kubectl(
            *("apply", "--server-side", "--dry-run=server", "-f", "-"),
            *(f"--as=system:serviceaccount:{NAMESPACE}:strata-operator",),
            stdin=json.dumps(body), check=False,
        )  # fmt: skip

    assert "serverside-applied" in role("pods", "") and "serverside-applied" in role("modeldeployments", "strata.dev")
    assert "attempting to grant RBAC permissions not currently held" in role("secrets", "")


def test_with_model_namespaces_nothing_is_granted_elsewhere(prepared, strata):
    # It has a namespace of its own, and so other names.
    prepared.namespace("second")
    strata.install(wait=False, namespace="second", modelNamespaces=["models-a"])
    try:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": "system:serviceaccount:second:strata-operator"},
        }

        def allowed(namespace: str) -> bool:
            body["spec"]["resourceAttributes"] = {
                "verb": "patch", "resource": "deployments", "group": "apps", "namespace": namespace,
            }  # fmt: skip
            path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
            return prepared.call("POST", path, body)["status"]["allowed"]

        assert allowed("models-a") and not allowed("models-b") and not allowed("second")
    finally:
        strata.uninstall(namespace="second")


def test_definitions_are_upgraded_and_kept(prepared, tmp_path):
    """Answers kubeai#213: a new field in a definition reaches a cluster that has the old one."""
    name = "tenants.strata.dev"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"

    def schema() -> dict:
        version = prepared.get(path)["spec"]["versions"][0]
        return version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]

    def upgrade(folder: pathlib.Path) -> None:
        prepared.helm("upgrade", "--install", "strata-crds", str(folder), "-n", NAMESPACE, "--wait")

    old = tmp_path / "strata-crds"
    prepared.run(["cp", "-r", str(ROOT / "charts/strata-crds"), str(old)])
    template = old / "templates/tenants.yaml"
    template.write_text(template.read_text().replace("timeZone:", "oldZone:"))
    upgrade(old)
    assert "oldZone" in schema() and "timeZone" not in schema()
    upgrade(ROOT / "charts/strata-crds")
    assert "timeZone" in schema() and "oldZone" not in schema()

    tenant = {"apiVersion": "strata.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "kept"}, "spec": {}}
    prepared.apply(tenant, namespace=NAMESPACE)
    prepared.helm("uninstall", "strata-crds", "-n", NAMESPACE, "--wait")
    assert prepared.find(prepared.path("Tenant", NAMESPACE, "kept")), "an uninstall took the objects away"
    upgrade(ROOT / "charts/strata-crds")
    prepared.delete(prepared.path("Tenant", NAMESPACE, "kept"))
