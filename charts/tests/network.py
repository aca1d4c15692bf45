"""Which connections a set of NetworkPolicies allows: the documented semantics as a pure function.

A connection from a pod to a port of another pod (or from or to an address outside the cluster) is
allowed when no policy isolates the source for egress, or one that selects it allows it, and likewise
for the destination and ingress. Policies only add.
"""

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pod:
    """A pod, with the labels of its namespace and the ports that its containers name."""

    name: str
    namespace: str
    labels: dict = field(default_factory=dict, hash=False)
    namespace_labels: dict = field(default_factory=dict, hash=False)
    ports: dict = field(default_factory=dict, hash=False)

    def all_namespace_labels(self) -> dict:
        return {"kubernetes.io/metadata.name": self.namespace} | self.namespace_labels


@dataclass(frozen=True)
class Address:
    """Something outside the cluster's pods."""

    name: str
    ip: str


Peer = Pod | Address


def allowed(policies: list[dict], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `port` of `target`."""
    return _passes(policies, "Egress", source, target, target, port, protocol) and _passes(
        policies, "Ingress", target, source, target, port, protocol
    )


def _passes(policies, direction, subject, other, target, port, protocol) -> bool:
    if isinstance(subject, Address):
        return True
    isolating = [p for p in policies if direction in types(p) and selects(p, subject)]
    return not isolating or any(
        _matches(rule, direction, policy["metadata"]["namespace"], other, target, port, protocol)
        for policy in isolating
        for rule in policy["spec"].get(direction.lower()) or []
    )


def types(policy: dict) -> list[str]:
    """The directions that a policy is about."""
    spec = policy["spec"]
    return spec.get("policyTypes") or ["Ingress"] + (["Egress"] if spec.get("egress") else [])


def selects(policy: dict, pod: Pod) -> bool:
    """Whether a policy is about a pod."""
    return policy["metadata"]["namespace"] == pod.namespace and matches(policy["spec"]["podSelector"], pod.labels)


def _matches(rule, direction, namespace, other, target, port, protocol) -> bool:
    peers = rule.get("from" if direction == "Ingress" else "to")
    ports = rule.get("ports")
    return (not peers or any(_is_peer(p, namespace, other) for p in peers)) and (
        not ports or any(_is_port(p, target, port, protocol) for p in ports)
    )


def _is_peer(peer: dict, namespace: str, other: Peer) -> bool:
    if "ipBlock" in peer:
        if isinstance(other, Pod):
            # Pods' addresses change; a rule by address is about what is outside.
            return False
        address = ipaddress.ip_address(other.ip)
        block = peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(e) for e in block.get("except") or [])
    if isinstance(other, Address):
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], other.all_namespace_labels()):
            return False
    elif other.namespace != namespace:
        return False
    return "podSelector" not in peer or matches(peer["podSelector"], other.labels)


def _is_port(wanted: dict, target: Peer, port: int, protocol: str) -> bool:
    if wanted.get("protocol", "TCP") != protocol:
        return False
    number = wanted.get("port")
    if number is None:
        return True
    if isinstance(number, str):
        return isinstance(target, Pod) and target.ports.get(number) == port
    return number <= port <= wanted.get("endPort", number)


def matches(selector: dict, labels: dict) -> bool:
    """Whether a label selector selects labels; an empty one selects everything."""
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    for want in selector.get("matchExpressions") or []:
        name, values = want["key"], want.get("values") or []
        holds = {
            "In": labels.get(name) in values and name in labels,
            "NotIn": labels.get(name) not in values or name not in labels,
            "Exists": name in labels,
            "DoesNotExist": name not in labels,
        }[want["operator"]]
        if not holds:
            return False
    return True
