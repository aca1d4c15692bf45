"""Addresses of a cluster: one /16 of its own, chosen so that several clusters stand side by side.

10.(200+index).0.0/16 is split so: .0.0/24 the machines (.1 the control plane, .10+n the nodes, .254 this
machine), .(100+n).0/24 the pods of node n, .192.0/18 the Services.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from .errors import ClusterError

INDEXES = range(55)


@dataclass(frozen=True)
class Network:
    index: int

    @property
    def _base(self) -> str:
        return f"10.{200 + self.index}"

    @property
    def range(self) -> str:
        return f"{self._base}.0.0/16"

    @property
    def pods(self) -> str:
        return f"{self._base}.64.0/18"

    @property
    def services(self) -> str:
        return f"{self._base}.192.0/18"

    @property
    def api_service(self) -> str:
        return f"{self._base}.192.1"

    @property
    def control_plane(self) -> str:
        return f"{self._base}.0.1"

    @property
    def host(self) -> str:
        return f"{self._base}.0.254"

    @property
    def host_device(self) -> str:
        return f"strata-k8s{self.index}"

    def node(self, number: int) -> str:
        return f"{self._base}.0.{10 + number}"

    def node_pods(self, number: int) -> str:
        return f"{self._base}.{100 + number}.0/24"


def free_indexes() -> list[int]:
    """Indexes whose range no route of this machine touches, lowest first."""
    shown = subprocess.run(["ip", "-json", "route", "show", "table", "all"], capture_output=True, text=True, check=False)
    taken = {route.get("dst", "").split("/")[0] for route in json.loads(shown.stdout or "[]")}
    seconds = {int(t.split(".")[1]) for t in taken if t.startswith("10.") and t.count(".") == 3}
    free = [i for i in INDEXES if 200 + i not in seconds]
    if not free:
        raise ClusterError("every range from 10.200.0.0/16 on is in use: stop a cluster with `cluster.py down --all`")
    return free
