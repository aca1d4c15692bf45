"""What the guides show as YAML does what they say."""

import re

import network
import yaml
from conftest import ROOT
from network import Address, Pod
from test_network import policies, strata

GUIDES = ROOT / "docs/guides"


def shown(guide: str, heading: str) -> list:
    """The documents of YAML below a heading."""
    section = (GUIDES / guide).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    return [document for block in blocks for document in yaml.safe_load_all(block)]


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
