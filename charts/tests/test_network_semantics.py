"""The evaluator of NetworkPolicies, against the documented semantics."""

import network
import pytest
from network import Address, Pod

A = Pod("a", "one", {"app": "a"}, {"team": "x"}, {"http": 8000})
B = Pod("b", "one", {"app": "b"}, {"team": "x"}, {"http": 9000})
C = Pod("c", "two", {"app": "b"}, {"team": "y"}, {})
WORLD = Address("world", "203.0.113.9")


def policy(spec: dict, namespace="one") -> dict:
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": {"podSelector": {}} | spec}


def ingress(*rules: dict, **more) -> list[dict]:
    return [policy({"policyTypes": ["Ingress"], "ingress": list(rules)} | more)]


def test_without_a_policy_everything_passes():
    assert network.allowed([], C, A, 1) and network.allowed([], WORLD, A, 1) and network.allowed([], A, WORLD, 1)


@pytest.mark.parametrize(
    "policies,source,target,port,expected",
    [
        # A policy without rules denies; it isolates its own namespace and the pods it selects alone.
        (ingress(), B, A, 8000, False),
        (ingress(), A, C, 8000, True),
        (ingress(podSelector={"matchLabels": {"app": "b"}}), B, A, 8000, True),
        # An empty rule allows everyone on every port.
        (ingress({}), WORLD, A, 1, True),
        (ingress({"from": []}), WORLD, A, 1, True),
        # A pod selector alone is about the policy's own namespace.
        (ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}), B, A, 1, True),
        (ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}), C, A, 1, False),
        # Both selectors in one peer: both must hold. In two peers: either.
        (ingress({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}]}), C, A, 1, True),
        (
            ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {}}]}),
            C, A, 1, False,
        ),
        (
            ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}, {"podSelector": {}}]}),
            C, A, 1, True,
        ),
        (ingress({"from": [{"namespaceSelector": {}}]}), WORLD, A, 1, False),
        (
            ingress({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "two"}}}]}),
            C, A, 1, True,
        ),
        # Ports, by number, by range, by the name that the target gives.
        (ingress({"ports": [{"port": 8000}]}), B, A, 8000, True),
        (ingress({"ports": [{"port": 8000}]}), B, A, 8001, False),
        (ingress({"ports": [{"port": 8000, "endPort": 8005}]}), B, A, 8005, True),
        (ingress({"ports": [{"port": 8000, "protocol": "UDP"}]}), B, A, 8000, False),
        (ingress({"ports": [{"port": "http"}]}), B, A, 8000, True),
        (ingress({"ports": [{"port": "http"}]}), A, B, 8000, False),
        (ingress({"ports": [{"port": "http"}]}), A, B, 9000, True),
        # Addresses.
        (ingress({"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}), WORLD, A, 1, True),
        (ingress({"from": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.9/32"]}}]}), WORLD, A, 1, False),
        (ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}), B, A, 1, False),
        # Expressions.
        (ingress({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b"]}]}}]}), B, A, 1, True),
        (ingress({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b"]}]}}]}), B, A, 1, False),
        (ingress({"from": [{"podSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}}]}), B, A, 1, False),
        (ingress({"from": [{"podSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}]}), B, A, 1, True),
        # Egress is judged at the source, by the target's named ports; policyTypes may be left out.
        ([policy({"egress": [{"ports": [{"port": "http"}]}]}, "one")], A, C, 8000, False),
        ([policy({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 8000}]}]})], A, C, 8000, True),
        ([policy({"policyTypes": ["Egress"]})], A, C, 8000, False),
        ([policy({"policyTypes": ["Egress"]})], C, A, 8000, True),
        # Policies add.
        (ingress() + ingress({}), B, A, 1, True),
    ],
)  # fmt: skip
def test_semantics(policies, source, target, port, expected):
    assert network.allowed(policies, source, target, port) is expected
