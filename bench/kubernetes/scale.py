#!/usr/bin/env python3
"""The operator with thousands of models, on a control plane whose nodes and pods are only objects.

    scale.py --strata target/release/strata [--models 2000] [--replicas 5] [--namespaces 20] [--new 100]

Measures: from the operator's start to every model with its children and a status of its generation, and
to every pod seen in it; a new model's time to its first status; memory; API calls at rest, counted in the
API server's audit log. No engine answers here, so no model becomes Ready. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e/k8s"))

import cluster as clusters  # noqa: E402
from host_operator import HostOperator  # noqa: E402
from install import GROUP, NAMESPACE, Strata, model  # noqa: E402
from kube import Kube  # noqa: E402

OPERATOR = f"system:serviceaccount:{NAMESPACE}:strata-operator"
# API calls a second that controllers and scheduler of Kubernetes may make.
RATE = 1000
PODS_PER_NODE = 5000
IDLE_S = 60


class Connections:
    """One kept connection to the API server for each thread."""

    def __init__(self, own: clusters.Cluster):
        self._api = own.api
        self._local = threading.local()

    def call(self, method: str, path: str, body: object = None) -> dict:
        connection, used = getattr(self._local, "connection", (None, 0.0))
        # The API server closes one that has been idle for some minutes.
        if connection is None or time.monotonic() - used > 30:
            host, port = self._api.server.removeprefix("https://").split(":")
            connection = http.client.HTTPSConnection(host, int(port), timeout=120, context=self._api._context)
        self._local.connection = (connection, time.monotonic())
        headers = {"authorization": f"Bearer {self._api.token}", "content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status // 100 != 2:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text)


def thing(number: int, replicas: int) -> dict:
    # No two serve the same name.
    return model(f"m{number:05}", "pvc://models/a.gguf", replicas, model={"name": f"m{number:05}"})


def models_path(namespace: str, name: str = "") -> str:
    return f"/apis/{GROUP}/namespaces/{namespace}/modeldeployments" + (f"/{name}" if name else "")


def wait(what: str, condition, deadline_s: float, every_s: float = 0.5) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > deadline_s:
            sys.exit(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(every_s)
    return time.monotonic() - began


def observed(listed: dict) -> Counter:
    """How many models have a status of their generation, and how many pods these statuses see."""
    count: Counter = Counter()
    for item in listed["items"]:
        status = item.get("status", {})
        if status.get("observedGeneration") == item["metadata"]["generation"]:
            count["statuses"] += 1
            count["replicas"] += status.get("replicas", 0)
    return count


def audited(own: clusters.Cluster, start: int) -> Counter:
    calls: Counter = Counter()
    with own.audit_log.open() as log:
        log.seek(start)
        for line in log:
            if OPERATOR in line and line.endswith("\n"):
                event = json.loads(line)
                if event["user"]["username"] == OPERATOR:
                    calls[f"{event['verb']} {event.get('objectRef', {}).get('resource', '')}"] += 1
    return calls


def memory(pid: int) -> dict[str, float]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split() for line in lines}
    return {"rss_mib": int(found["VmRSS"][1]) / 1024, "peak_mib": int(found["VmHWM"][1]) / 1024}


def processor_s(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def first_status(calls: Connections, namespace: str, number: int) -> float:
    """Makes a model and waits for its first status, asking often enough to tell milliseconds."""
    one = thing(number, 1)
    began = time.monotonic()
    calls.call("POST", models_path(namespace), one)
    while True:
        got = calls.call("GET", models_path(namespace, one["metadata"]["name"]))
        if got.get("status", {}).get("observedGeneration") == got["metadata"]["generation"]:
            return time.monotonic() - began
        if time.monotonic() - began > 300:
            sys.exit("a new model had no status after 300 s")
        time.sleep(0.005)


def measure(args: argparse.Namespace, own: clusters.Cluster, folder: pathlib.Path) -> dict:
    kube, calls = Kube(own.kubeconfig, own), Connections(own)
    namespaces = [f"models-{n}" for n in range(args.namespaces)]
    result: dict = {"models": args.models, "replicas_each": args.replicas, "namespaces": args.namespaces}
    try:
        for namespace in namespaces:
            kube.namespace(namespace)
        Strata(kube, pathlib.Path("/dev/null")).install(wait=False)
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(
                pool.map(
                    lambda n: calls.call("POST", models_path(namespaces[n % len(namespaces)]), thing(n, args.replicas)),
                    range(args.models),
                )
            )
        print(f"made {args.models} models in {time.monotonic() - began:.0f} s", file=sys.stderr)
        start, began = own.audit_log.stat().st_size, time.monotonic()
        with HostOperator(kube, args.strata.resolve(), folder) as operator:
            everywhere = f"/apis/{GROUP}/modeldeployments"

            def deployments() -> int:
                listed = calls.call("GET", "/apis/apps/v1/deployments?labelSelector=app.kubernetes.io/component%3Dengine")
                return len(listed["items"])

            wait("every model to have its Deployment", lambda: deployments() >= args.models, 3600, 1)
            result["cold_start_children_s"] = round(time.monotonic() - began, 1)
            wait(
                "every model to have a status",
                lambda: observed(calls.call("GET", everywhere))["statuses"] == args.models, 3600, 1,
            )  # fmt: skip
            result["cold_start_statuses_s"] = round(time.monotonic() - began, 1)
            pods = args.models * args.replicas
            wait(
                "every pod to be in a status",
                lambda: observed(calls.call("GET", everywhere))["replicas"] == pods, 3600, 1,
            )  # fmt: skip
            result["cold_start_all_pods_seen_s"] = round(time.monotonic() - began, 1)
            result["pods"] = pods
            result["cold_start_api_calls"] = dict(audited(own, start).most_common(12))
            result["cold_start_cpu_s"] = round(processor_s(operator.process.pid), 1)
            result["memory_loaded"] = memory(operator.process.pid)
            print(f"cold start: {result}", file=sys.stderr)
            quiet = wait("rest", lambda: at_rest(own), 600, 1)
            result["until_rest_s"] = round(quiet, 1)
            start, cpu = own.audit_log.stat().st_size, processor_s(operator.process.pid)
            time.sleep(IDLE_S)
            result["idle_api_calls_per_minute"] = dict(audited(own, start))
            result["idle_cpu_s_per_minute"] = round(processor_s(operator.process.pid) - cpu, 2)
            took = sorted(
                first_status(calls, namespaces[n % len(namespaces)], args.models + n) for n in range(args.new)
            )
            result["new_object_first_status_ms"] = {
                "p50": round(statistics.median(took) * 1000, 1),
                "p99": round(took[min(len(took) - 1, int(len(took) * 0.99))] * 1000, 1),
                "max": round(took[-1] * 1000, 1),
                "count": len(took),
            }
            result["memory_end"] = memory(operator.process.pid)
            assert operator.process.poll() is None, operator.tail()
        return result
    finally:
        kube.close()


def at_rest(own: clusters.Cluster) -> bool:
    start = own.audit_log.stat().st_size
    time.sleep(5)
    return all(k.endswith(" leases") or k.startswith("watch ") for k in audited(own, start))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--new", type=int, default=100)
    args = parser.parse_args()
    own = clusters.Cluster("scale")
    pods = args.models * args.replicas + 2 * args.namespaces + args.new
    own.up("control-plane", nodes=pods // PODS_PER_NODE + 1, rate=RATE, ends_with_owner=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, own, pathlib.Path(folder))
    finally:
        own.down()
    result["machine"] = f"{platform.machine()}, {len(__import__('os').sched_getaffinity(0))} cores, all of Kubernetes on it"
    result["controllers_api_calls_per_second"] = RATE
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
