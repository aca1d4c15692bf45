"""Pods of the charts, and of the operator's snapshots: hardened, and restarted only when they must be."""

import copy
import re
import shutil

import podsecurity
import pytest
import yaml
from conftest import CHARTS, arguments_of, rendered_by_operator, values_of

COMPONENTS = ("operator", "gateway", "platform")


def deployments(objects: list[dict]) -> dict[str, dict]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == "Deployment"}


def engine_deployments() -> list[tuple[str, dict]]:
    found = [(name, o) for name, o in rendered_by_operator() if o["kind"] == "Deployment"]
    # Not those of which a test shows a part.
    return [(name, o) for name, o in found if "containers" in o.get("spec", {}).get("template", {}).get("spec", {})]


def test_restricted(helm, case):
    for name, deployment in deployments(helm.objects("strata", values_of(case), *arguments_of(case))).items():
        assert podsecurity.violations(deployment["spec"]["template"]["spec"]) == [], name


@pytest.mark.parametrize("name,deployment", engine_deployments(), ids=lambda v: v if isinstance(v, str) else "")
def test_restricted_engines_and_schedulers(name, deployment):
    assert podsecurity.violations(deployment["spec"]["template"]["spec"]) == []


def test_the_operator_has_snapshots():
    names = {d["metadata"]["labels"]["app.kubernetes.io/component"] for _, d in engine_deployments()}
    assert {"engine", "scheduler"} <= names
    kinds = {o["kind"] for _, o in rendered_by_operator()}
    assert {"HorizontalPodAutoscaler", "ScaledObject", "HTTPRoute", "InferencePool", "NetworkPolicy"} <= kinds
    pods = [d["spec"]["template"]["spec"] for _, d in engine_deployments()]
    assert any(c["command"][0] == "vllm" for pod in pods for c in pod["containers"])
    assert any("nvidia.com/gpu" in c["resources"]["limits"] for pod in pods for c in pod["containers"])
    assert any(c["name"] == "fetch" for pod in pods for c in pod.get("initContainers", []))


GOOD = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {"name": "c", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    ],
}


@pytest.mark.parametrize(
    "path,value",
    [
        (("hostNetwork",), True),
        (("hostPID",), True),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
        (("volumes",), [{"name": "v", "hostPath": {"path": "/"}}]),
        (("containers", 0, "ports"), [{"containerPort": 80, "hostPort": 80}]),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), None),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["KILL"]}),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        (("containers", 0, "securityContext", "procMount"), "Unmasked"),
        (("containers", 0, "livenessProbe"), {"httpGet": {"host": "10.0.0.1", "port": 1}}),
        (("initContainers",), [{"name": "i"}]),
    ],
    ids=lambda v: ".".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_the_check_of_restricted_sees(path, value):
    assert podsecurity.violations(GOOD) == []
    bad = copy.deepcopy(GOOD)
    at = bad
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert podsecurity.violations(bad) != []


def test_root_filesystem_is_read_only(helm, case):
    own = deployments(helm.objects("strata", values_of(case), *arguments_of(case))).items()
    for name, deployment in [*own, *engine_deployments()]:
        spec = deployment["spec"]["template"]["spec"]
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def environment(deployment: dict) -> dict[str, str]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_sqlite_has_room_for_its_files(helm, case):
    """It sorts in a file in SQLITE_TMPDIR, /var/tmp, /usr/tmp or /tmp, and the root is read-only."""
    for name, deployment in deployments(helm.objects("strata", values_of(case), *arguments_of(case))).items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        mounts = [m["mountPath"] for m in container.get("volumeMounts", []) if m["name"] == "state"]
        assert bool(mounts) is (name != "strata-operator")
        assert [environment(deployment).get("SQLITE_TMPDIR")] == (mounts or [None]), name


def test_streams_are_let_end_before_the_pod_is_killed(helm, case):
    for name, deployment in deployments(helm.objects("strata", values_of(case), *arguments_of(case))).items():
        spec = deployment["spec"]["template"]["spec"]
        pause = spec["containers"][0].get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})["sleep"]["seconds"]
        grace = environment(deployment).get("STRATA_DRAIN_GRACE")
        assert (grace is None) is (name == "strata-operator")
        if grace:
            assert int(grace) == spec["terminationGracePeriodSeconds"] - pause - 1, name


@pytest.mark.parametrize("grace,pause,left", [(65, 5, "59"), (6, 5, "1"), (7, 5, "1"), (8, 5, "2"), (1, 0, "1")])
def test_streams_have_a_second_at_least(helm, grace, pause, left):
    values = {"gateway": {"terminationGracePeriodSeconds": grace, "preStopSeconds": pause}}
    gateway = deployments(helm.objects("strata", values))["strata-gateway"]
    assert environment(gateway)["STRATA_DRAIN_GRACE"] == left


def test_only_who_asks_the_api_server_holds_a_token(helm, case):
    for name, deployment in deployments(helm.objects("strata", values_of(case), *arguments_of(case))).items():
        token = deployment["spec"]["template"]["spec"]["automountServiceAccountToken"]
        assert token is (name != "strata-platform")


def flags_of(component: str) -> set[str]:
    """The flags that the binary's own reference lists for a command."""
    reference = (CHARTS.parent / "docs/reference/cli.md").read_text()
    section = reference.split(f"\n## strata {component}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"--[a-z-]+", section))


def test_the_binary_knows_the_arguments(helm, case):
    for deployment in deployments(helm.objects("strata", values_of(case), *arguments_of(case))).values():
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        program, component = container["command"]
        assert program == "strata"
        given = {argument.split("=")[0] for argument in container["args"]}
        assert given <= flags_of(component), component


# For each component, another setting of everything that is about it alone.
ANOTHER = {
    "image": "other:1",
    "resources": {"limits": {"memory": "2Gi"}},
    "env": [{"name": "A", "value": "b"}],
    "podLabels": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a"}],
    "affinity": {"podAffinity": {}},
    "priorityClassName": "high",
    "serviceAccountAnnotations": {"a": "b"},
    "pdbMaxUnavailable": 0,
    "extraEgress": [{}],
    "replicas": 0,
    "terminationGracePeriodSeconds": 99,
}


@pytest.mark.parametrize("changed", COMPONENTS)
def test_a_change_of_one_component_restarts_no_other(helm, changed):
    before = deployments(helm.objects("strata"))
    after = deployments(helm.objects("strata", {changed: ANOTHER}))
    assert {n for n in before if before[n] != after[n]} == {f"strata-{changed}"}


def test_the_operator_alone_is_told_that_no_policies_are_wanted(helm):
    before = deployments(helm.objects("strata"))
    after = deployments(helm.objects("strata", {"networkPolicy": {"enabled": False}}))
    assert {n for n in before if before[n] != after[n]} == {"strata-operator"}
    args = after["strata-operator"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--no-network-policies" in args


@pytest.mark.parametrize(
    "server,told",
    [
        ({}, []),
        ({"ports": [443, 6443]}, []),
        ({"ports": [6443]}, ["--api-server-ports=6443"]),
        ({"ports": [443, 16443]}, ["--api-server-ports=443,16443"]),
        ({"cidrs": ["10.0.0.1/32", "fd00::1/128"]}, ["--api-server-cidrs=10.0.0.1/32,fd00::1/128"]),
    ],
)
def test_the_operator_is_told_where_schedulers_find_the_api_server(helm, server, told):
    operator = deployments(helm.objects("strata", {"networkPolicy": {"apiServer": server}}))["strata-operator"]
    args = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [a for a in args if a.startswith("--api-server")] == told


def test_the_operator_knows_the_ports_that_it_is_not_told():
    values = yaml.safe_load((CHARTS / "strata/values.yaml").read_text())
    reference = (CHARTS.parent / "docs/reference/cli.md").read_text()
    said = reference.split("--api-server-ports <", 1)[1].split("[default: ", 1)[1].split("]", 1)[0]
    assert [int(port) for port in said.split()] == values["networkPolicy"]["apiServer"]["ports"]


def deep(base: dict, over: dict) -> dict:
    """Values over others, as Helm merges them."""
    both = {k: deep(base[k], v) if isinstance(v, dict) and k in base else v for k, v in over.items()}
    return {**base, **both}


@pytest.mark.parametrize(
    "values",
    [
        {"networkPolicy": {"entranceFrom": [{"podSelector": {}}]}},
        {"extraLabels": {"a": "b"}, "extraAnnotations": {"c": "d"}},
        {"serviceMonitor": {"enabled": True}},
        {"gateway": {"service": {"type": "NodePort"}, "persistence": {"size": "20Gi", "keep": False}}},
        {"platform": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "x"}]}}},
    ],
    ids=lambda v: "+".join(v),
)
def test_what_is_about_no_pod_restarts_none(helm, values):
    # Who reads metrics is told to the operator: the same before and after.
    plain = {"networkPolicy": {"metricsNamespaces": ["monitoring"]}}
    kinds = ["--api-versions=monitoring.coreos.com/v1/ServiceMonitor,monitoring.coreos.com/v1/PodMonitor"]
    first, then = helm.objects("strata", plain, *kinds), helm.objects("strata", deep(plain, values), *kinds)
    assert first != then, "nothing was rendered otherwise"
    before, after = deployments(first), deployments(then)
    for name in before:
        assert before[name]["spec"]["template"] == after[name]["spec"]["template"], name


def test_a_new_chart_with_the_same_binary_restarts_no_pod(helm, tmp_path):
    chart = tmp_path / "strata"
    shutil.copytree(CHARTS / "strata", chart)
    definition = chart / "Chart.yaml"
    text = definition.read_text()
    version = yaml.safe_load(text)["version"]
    definition.write_text(text.replace(f"\nversion: {version}", "\nversion: 9.9.9"))
    before, after = deployments(helm.objects("strata")), deployments(helm.objects(chart))
    assert {n: d["spec"] for n, d in before.items()} == {n: d["spec"] for n, d in after.items()}


def test_a_change_of_mode_keeps_the_claims_and_selectors(helm):
    """A claim that a mode leaves out is kept on the cluster; one that stays is the same object."""
    by_mode = {}
    for mode in ("development", "production", "enterprise"):
        objects = helm.objects("strata", {"mode": mode, "platform": {"insecureNoAuth": mode != "enterprise"}})
        by_mode[mode] = objects
        for claim in (o for o in objects if o["kind"] == "PersistentVolumeClaim"):
            assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

    def platform(mode: str) -> tuple:
        found = {(o["kind"], o["metadata"]["name"]): o for o in by_mode[mode]}
        deployment = found["Deployment", "strata-platform"]
        return found["PersistentVolumeClaim", "strata-platform"], deployment["spec"]["selector"]

    assert platform("development") == platform("production") == platform("enterprise")
