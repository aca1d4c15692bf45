"""The schedulers that the operator makes, asked by a real Envoy: its pool, its port, and an answer by way of them."""

from __future__ import annotations

import base64
import json
import pathlib
import socket
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
import yaml
from install import MODEL
from serving import MODELS, NAME, Serving

pytestmark = pytest.mark.pods

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICKER = 9002
# As much of the definition as an object of it needs.
POOLS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "inferencepools.inference.networking.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
    },
    "spec": {
        "group": "inference.networking.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "InferencePool", "plural": "inferencepools", "singular": "inferencepool"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
PROXIES = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]


@pytest.fixture(scope="module")
def serving(kube, strata):
    kube.apply(POOLS)
    # The layers know each other by a token, which a proxy can be given.
    values = {"internalTls": False, "operator": {"picker": {"enabled": True, "from": PROXIES}}}
    return Serving(kube, strata, replicas=2, values=values)


def pool(kube) -> dict | None:
    return kube.find(f"/apis/inference.networking.k8s.io/v1/namespaces/{MODELS}/inferencepools/{NAME}")


def test_the_pool_names_a_port_that_there_is(kube, serving):
    spec = kube.wait("the pool", lambda: pool(kube), 30)["spec"]
    asked = spec["endpointPickerRef"]
    service = kube.get(f"/api/v1/namespaces/{MODELS}/services/{asked['name']}")
    ports = {p["port"]: p for p in service["spec"]["ports"]}
    assert ports[asked["port"]["number"]]["appProtocol"] == "kubernetes.io/h2c"
    labels = spec["selector"]["matchLabels"]
    selected = kube.items(f"/api/v1/namespaces/{MODELS}/pods", labels)
    assert {p["metadata"]["name"] for p in selected} == set(serving.engines())
    policy = kube.get(f"/apis/networking.k8s.io/v1/namespaces/{MODELS}/networkpolicies/strata-scheduler")
    rules = {r["ports"][0]["port"]: r["from"] for r in policy["spec"]["ingress"]}
    assert rules[PICKER] == PROXIES


def configured(serving, picker: str, token: str, port: int) -> dict:
    """The example's configuration, for these addresses and this token."""
    config = yaml.safe_load((ROOT / "examples/envoy/envoy.yaml").read_text())
    resources = config["static_resources"]
    (listener,) = resources["listeners"]
    listener["address"]["socket_address"]["port_value"] = port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0]["typed_config"]["grpc_service"]["initial_metadata"] = [
        {"key": "x-strata-hop-token", "value": token}
    ]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    route["request_headers_to_add"] = [{"header": {"key": "x-strata-hop-token", "value": token}}]
    scheduler = next(c for c in resources["clusters"] if c["name"] == "scheduler")
    endpoint = scheduler["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"] = {"address": picker, "port_value": PICKER}
    return config


def test_an_envoy_asks_them_and_sends_requests_where_they_say(kube, serving, tmp_path):
    envoy = pathlib.Path(sys.executable).parent / "envoy"
    if not kube.own or not envoy.exists():
        pytest.skip("needs an Envoy on this machine, and pods that it reaches")
    secret = kube.get(f"/api/v1/namespaces/{MODELS}/secrets/strata-hop")
    token = base64.b64decode(secret["data"]["token"]).decode()
    picker = urllib.parse.urlsplit(kube.url(MODELS, "strata-scheduler", PICKER)).hostname
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(configured(serving, picker, token, port)))
    log = (tmp_path / "envoy.log").open("w")
    process = subprocess.Popen(
        [envoy, "--disable-hot-restart", "--concurrency", "1", "--config-path", config], stdout=log, stderr=log
    )
    try:
        base = f"http://127.0.0.1:{port}"

        def call(path: str, body: dict | None = None) -> tuple[dict, dict]:
            data = json.dumps(body).encode() if body else None
            request = urllib.request.Request(f"{base}{path}", data, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return dict(answer.headers), json.load(answer)

        def models() -> list[str] | None:
            assert process.poll() is None, (tmp_path / "envoy.log").read_text()[-3000:]
            try:
                return [m["id"] for m in call("/v1/models")[1]["data"]]
            except OSError:
                return None

        assert kube.wait("the scheduler's list by way of Envoy", models, 30) == [MODEL]
        question = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        for _ in range(4):
            assert call("/v1/chat/completions", question)[1]["usage"]["completion_tokens"]
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def test_without_it_there_is_none(kube, serving):
    serving.strata.install(internalTls=False)
    kube.wait("the pool to go", lambda: pool(kube) is None, 60)

    def ports() -> list[int]:
        service = kube.get(f"/api/v1/namespaces/{MODELS}/services/strata-scheduler")
        return [p["port"] for p in service["spec"]["ports"]]

    kube.wait("the port to go", lambda: ports() == [8000], 60)
