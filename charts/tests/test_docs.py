"""What the guides show as YAML does what they say."""

import re

import network
import pytest
import scrape
import yaml
from conftest import ROOT, rendered_by_operator
from network import Address, Pod
from test_network import policies, strata

GUIDES = ROOT / "docs/guides"


def shown(guide: str, heading: str) -> list:
    """The documents of YAML below a heading."""
    section = (GUIDES / guide).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    return [document for block in blocks for document in yaml.safe_load_all(block)]


@pytest.mark.parametrize("path", ["README.md", "docs/guides/kubernetes.md", "charts/strata/templates/NOTES.txt"])
def test_who_waits_for_a_model_waits_long_enough(path):
    """Without --timeout `kubectl wait` gives up after 30 s, before a model is loaded."""
    waits = [line for line in (ROOT / path).read_text().splitlines() if line.strip().startswith("kubectl wait")]
    assert waits and all(line.endswith(" --timeout=10m") for line in waits)


def test_the_images_size_is_the_one_that_is_tested():
    said = re.search(r"make image`.*?less than (\d+) MB", (GUIDES / "kubernetes.md").read_text())
    held = re.search(r"^LIMIT_BYTES = (\d+)e6$", (ROOT / "e2e/k8s/test_image.py").read_text(), re.MULTILINE)
    assert said[1] == held[1]


def test_where_the_api_server_is(helm):
    (values,) = shown("kubernetes.md", "Without internet")
    rules = policies(helm, "enterprise", values)
    for name in ("operator", "gateway"):
        pod = strata(name, "strata")
        for cidr in values["networkPolicy"]["apiServer"]["cidrs"]:
            address = Address("API server", cidr.removesuffix("/32"))
            assert network.allowed(rules, pod, address, 443) and network.allowed(rules, pod, address, 6443)
        assert not network.allowed(rules, pod, Address("internet", "203.0.113.9"), 443)


def test_engines_reach_a_proxy(kubeconform):
    (policy,) = shown("models.md", "Behind a proxy, and without the Internet")
    assert kubeconform(yaml.safe_dump(policy)) == ""
    proxy = Address("proxy", "192.0.2.20")
    # Like the operator's: no egress, until a policy adds some.
    isolated = {"podSelector": {}, "policyTypes": ["Egress"]}
    none = {"metadata": {"name": "none", "namespace": "models"}, "spec": isolated}
    engine = strata("engine", "models")
    assert not network.allowed([none], engine, proxy, 3128)
    assert network.allowed([none, policy], engine, proxy, 3128)
    assert not network.allowed([none, policy], engine, proxy, 443)
    assert not network.allowed([none, policy], strata("scheduler", "models"), proxy, 3128)
    assert not network.allowed([none, policy], Pod("app", "models", {"app": "chat"}), proxy, 3128)


def test_metrics_by_the_prometheus_operator(helm):
    (values, *_) = shown("kubernetes.md", "Metrics and autoscaling")
    kinds = [o["kind"] for o in helm.objects("strata", values, *scrape.KINDS)]
    assert {"ServiceMonitor", "PodMonitor"} <= set(kinds)


def test_metrics_by_hand(helm):
    _, config, _ = shown("kubernetes.md", "Metrics and autoscaling")
    (job,) = config["scrape_configs"]
    assert job["tls_config"] == {"insecure_skip_verify": True}
    of_chart = [scrape.pod_of(o) for o in helm.objects("strata") if o["kind"] == "Deployment"]
    names = {p.labels["app.kubernetes.io/component"]: p for p in of_chart}
    for name, pod in names.items():
        targets = scrape.targets(job, pod)
        assert len(targets) == (name != "platform"), name
        assert all(t["__scheme__"] == "http" and t["namespace"] == "strata" for t in targets)
    assert scrape.targets(job, scrape.pod_of(scrape.ENGINE)) == [
        {"__scheme__": "http", "namespace": "models", "pod": "smol-engine", "model_deployment": "smol"}
    ]
    (speaks_tls,) = scrape.targets(job, scrape.pod_of(scrape.with_tls(scrape.ENGINE)))
    assert speaks_tls["__scheme__"] == "https"


def test_the_adapter_answers_what_the_operator_asks():
    *_, values = shown("kubernetes.md", "Metrics and autoscaling")
    (rule,) = values["rules"]["external"]
    asked = {
        (m["external"]["metric"]["name"], *m["external"]["metric"]["selector"]["matchLabels"])
        for _, o in rendered_by_operator()
        if o["kind"] == "HorizontalPodAutoscaler"
        for m in o["spec"]["metrics"]
    }
    assert {label for _, label in asked} == {"model_deployment"}
    names = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])[1]
    assert all(re.fullmatch(names, name) for name, _ in asked)
    # One number for each model: Kubernetes sums what it is given, and divides by the replicas.
    assert rule["metricsQuery"].startswith("sum(<<.Series>>{<<.LabelMatchers>>}) by (namespace, model_deployment)")
    assert rule["resources"] == {"overrides": {"namespace": {"resource": "namespace"}}}
