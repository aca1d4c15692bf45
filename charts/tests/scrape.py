"""How Prometheus comes from a pod to its targets: discovery and relabelling as a pure function."""

import copy
import re
from dataclasses import dataclass

KINDS = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor")]

# An engine as the operator makes it: what discovery sees of it.
ENGINE = {
    "metadata": {"name": "smol-engine", "namespace": "models"},
    "spec": {
        "template": {
            "metadata": {
                "labels": {
                    "app.kubernetes.io/name": "strata",
                    "app.kubernetes.io/component": "engine",
                    "strata.dev/model-deployment": "smol",
                }
            },
            "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": 8000}]}]},
        }
    },
}


@dataclass
class Pod:
    name: str
    namespace: str
    labels: dict
    annotations: dict
    ports: list[str]


def pod_of(workload: dict) -> Pod:
    """A pod of a Deployment."""
    template = workload["spec"]["template"]
    metadata = template["metadata"]
    ports = [p["name"] for c in template["spec"]["containers"] for p in c.get("ports", [])]
    where = workload["metadata"]
    return Pod(where["name"], where["namespace"], metadata["labels"], metadata.get("annotations", {}), ports)


def with_tls(workload: dict) -> dict:
    """The same as one that speaks TLS, as its annotation tells."""
    out = copy.deepcopy(workload)
    out["spec"]["template"]["metadata"].setdefault("annotations", {})["prometheus.io/scheme"] = "https"
    return out


def targets(job: dict, pod: Pod) -> list[dict]:
    """The labels of each of a pod's ports that a scrape job keeps; those that begin with __ are Prometheus' own."""
    found = [_relabelled(job["relabel_configs"], _discovered(pod, port)) for port in pod.ports]
    return [{k: v for k, v in t.items() if k == "__scheme__" or not k.startswith("__")} for t in found if t]


def monitored(endpoint: dict, pod: Pod) -> list[dict]:
    """The same for an endpoint of a PodMonitor, which names its port beside its relabelling."""
    short = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    rules = [{short.get(k, k): v for k, v in rule.items()} for rule in endpoint["relabelings"]]
    port = {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"], "action": "keep"}
    return targets({"relabel_configs": [port, *rules]}, pod)


def _discovered(pod: Pod, port: str) -> dict:
    found = {
        "__scheme__": "http",
        "__meta_kubernetes_namespace": pod.namespace,
        "__meta_kubernetes_pod_name": pod.name,
        "__meta_kubernetes_pod_container_port_name": port,
    }
    for kind, values in (("label", pod.labels), ("annotation", pod.annotations)):
        for name, value in values.items():
            found[f"__meta_kubernetes_pod_{kind}_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)] = value
    return found


def _relabelled(rules: list[dict], labels: dict) -> dict | None:
    labels = dict(labels)
    for rule in rules:
        value = ";".join(labels.get(name, "") for name in rule["source_labels"])
        match = re.fullmatch(rule.get("regex", "(.*)"), value)
        action = rule.get("action", "replace")
        if action == "keep":
            if not match:
                return None
        elif action == "replace":
            if match and match[1]:
                labels[rule["target_label"]] = match[1]
        else:
            raise NotImplementedError(action)
    return labels
