#!/usr/bin/env python3
"""A real Kubernetes on this machine, for tests and for trying things out.

    cluster.py up [--name NAME] [--nodes N] [--tier auto|node|control-plane] [--image TAR]...
    cluster.py load TAR [--name NAME]       give every node an image
    cluster.py volumes NAMESPACE            a claim `models` with the test model, and free volumes
    cluster.py kubeconfig | status | down [--name NAME] | down --all

The node tier runs etcd, the API server, controllers, scheduler, DNS, and for each node containerd,
kubelet and kube-proxy, all in network, mount and process namespaces of their own; it needs root. The
control-plane tier runs on loopback without root, and its nodes are objects that kwok looks after.
Standard library only; binaries are built on the first call (see driver/binaries.py).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"))

import image as images  # noqa: E402
from driver import binaries, machine, volumes  # noqa: E402
from driver.api import Api  # noqa: E402
from driver.control_plane import ControlPlane, Place  # noqa: E402
from driver.daemon import Daemons, identity  # noqa: E402
from driver.errors import ClusterError  # noqa: E402
from driver.network import Network, free_indexes  # noqa: E402
from driver.node import PAUSE, Node  # noqa: E402
from driver.sandbox import Sandbox, run  # noqa: E402

NODE_BINARIES = ["kubernetes", "etcd", "coredns", "probe"]
CONTROL_PLANE_BINARIES = ["kubernetes", "etcd", "kwok"]
REQUIRE_NODE = "CI_REQUIRE_NODE"


def folder_of_clusters() -> pathlib.Path:
    # Short: the path of a UNIX socket in it has room for 107 bytes.
    return pathlib.Path(os.environ.get("STRATA_K8S_STATE") or pathlib.Path(tempfile.gettempdir()) / "strata-k8s")


def choose_tier(wanted: str) -> str:
    """`node` where containers can run, else `control-plane`, saying why; an error where a node is required."""
    if wanted == "control-plane":
        return wanted
    machine.install_packages()
    obstacles = machine.obstacles()
    if not obstacles:
        return "node"
    reasons = "; ".join(obstacles)
    if wanted == "node" or os.environ.get(REQUIRE_NODE):
        raise ClusterError(f"this machine cannot run a node, and one is required: {reasons}")
    print(f"no node here ({reasons}): control plane only, nothing runs in pods", file=sys.stderr, flush=True)
    return "control-plane"


class Cluster:
    """One cluster, running or to be started; everything of it is in `state`."""

    def __init__(self, name: str):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
            raise ClusterError(f"{name!r} is no name for a cluster: use small letters, digits and dashes, at most 31")
        self.name = name
        self.state = folder_of_clusters() / name
        self.daemons = Daemons(self.state)
        self.nodes: list[Node] = []
        about = self.state / "cluster.json"
        self.about: dict = json.loads(about.read_text()) if about.exists() else {}
        if self.about:
            self._assemble()

    @property
    def exists(self) -> bool:
        return bool(self.about)

    @property
    def tier(self) -> str:
        return self.about["tier"]

    @property
    def kubeconfig(self) -> pathlib.Path:
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> pathlib.Path:
        return self.daemons.logs / "audit.log"

    @property
    def api(self) -> Api:
        config = json.loads(self.kubeconfig.read_text())
        where, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        return Api(where["server"], pathlib.Path(where["certificate-authority"]), user["token"])

    def _assemble(self) -> None:
        """The parts of a cluster that runs, from its folder."""
        self.network = Network(self.about["index"])
        if self.tier != "node":
            return
        sandbox = Sandbox("control-plane", self.daemons)
        place = Place(self.network.control_plane, self.network.control_plane, sandbox)
        plane = ControlPlane(self.state, self.daemons, self.network, place, self.about["nodes"])
        self.nodes = [Node(self.state, self.daemons, plane, n, self.name) for n in range(1, self.about["nodes"] + 1)]

    def up(
        self,
        tier: str = "auto",
        nodes: int = 1,
        archives: list[pathlib.Path] = (),
        rate: int = 100,
        ends_with_owner: bool = False,
    ) -> None:
        """Starts the cluster and returns when its nodes are Ready.

        `rate` is the API calls a second that each controller may make. A cluster that ends with its owner,
        which is this process, may be swept once the process is no more.
        """
        if self.exists:
            raise ClusterError(f"there is a cluster {self.name} already: stop it with `cluster.py down --name {self.name}`")
        tier = choose_tier(tier)
        binaries.ensure(NODE_BINARIES if tier == "node" else CONTROL_PLANE_BINARIES)
        self.state.mkdir(parents=True, exist_ok=True)
        self._remember(tier=tier, nodes=nodes, index=0, owner=identity(os.getpid()) if ends_with_owner else None)
        try:
            if tier == "node":
                self._up_nodes(nodes, archives, rate)
            else:
                self._up_control_plane(nodes, rate)
        except BaseException:
            # The logs stay for who reads the error; the rest goes.
            self.daemons.kill_all()
            self._forget(keep_logs=True)
            raise

    def _remember(self, **about: object) -> None:
        self.about.update(about)
        (self.state / "cluster.json").write_text(json.dumps(self.about))

    def _up_control_plane(self, nodes: int, rate: int) -> None:
        self.network = Network(0)
        plane = ControlPlane(self.state, self.daemons, self.network, Place("127.0.0.1", "127.0.0.1"), 0)
        plane.prepare()
        plane.start_api()
        plane.wait_api()
        plane.start_controllers(rate)
        plane.wait_controllers()
        plane.start_kwok(nodes)

    def _wire(self, plane: Sandbox) -> Network:
        """Makes the control plane's sandbox and its wire to this machine, in the first range that is free."""
        plane.create()
        for index in free_indexes():
            network = Network(index)
            try:
                plane.plug("host0", "0.0.0.0/32", None, network.host_device)
                break
            except ClusterError as error:
                # Another cluster took this index between the look and the try.
                if "File exists" not in str(error):
                    raise
        else:
            raise ClusterError("every range from 10.200.0.0/16 on is in use: stop a cluster with `cluster.py down --all`")
        plane.run("ip", "link", "add", "br0", "type", "bridge")
        plane.run("ip", "address", "add", f"{network.control_plane}/24", "dev", "br0")
        plane.run("ip", "link", "set", "br0", "up")
        plane.run("ip", "link", "set", "host0", "master", "br0")
        run(["ip", "address", "add", f"{network.host}/24", "dev", network.host_device], "addressing the host's wire")
        run(["ip", "link", "set", network.host_device, "up"], "raising the host's wire")
        return network

    def _up_nodes(self, count: int, archives: list[pathlib.Path], rate: int) -> None:
        machine.raise_limits()
        inside = Sandbox("control-plane", self.daemons)
        self.network = network = self._wire(inside)
        self._remember(index=network.index)
        place = Place(network.control_plane, network.control_plane, inside)
        plane = ControlPlane(self.state, self.daemons, network, place, count)
        plane.prepare()
        plane.start_api()
        self.nodes = [Node(self.state, self.daemons, plane, n, self.name) for n in range(1, count + 1)]
        for node in self.nodes:
            self._plug_node(node, inside)
            node.start_runtime()
        for node in self.nodes:
            node.wait_runtime()
            for archive in [self._pause_image(), *archives]:
                node.load(archive)
        plane.wait_api()
        plane.start_controllers(rate)
        plane.start_dns()
        for node in self.nodes:
            node.start_kubelet()
            node.start_proxy()
        plane.wait_controllers()
        for node in self.nodes:
            node.wait_ready(plane.api)

    def _plug_node(self, node: Node, plane: Sandbox) -> None:
        network = self.network
        node.sandbox.create()
        node.sandbox.plug("eth0", f"{node.address}/24", plane, node.name)
        plane.run("ip", "link", "set", node.name, "master", "br0", "up")
        node.sandbox.run("ip", "route", "add", "default", "via", network.control_plane)
        node.sandbox.sysctl("net.ipv4.ip_forward", "1")
        # A packet to a Service in the moment in which it has no pod is sent on to the default route, which is
        # on the same wire: whoever sent it would be told to go there, and believe it for minutes.
        for device in ("all", "default", "eth0"):
            node.sandbox.sysctl(f"net.ipv4.conf.{device}.send_redirects", "0")
        pods, via = network.node_pods(node.number), ["via", node.address]
        routes = [[pods, *via]] + ([[network.services, *via]] if node.number == 1 else [])
        for route in routes:
            plane.run("ip", "route", "add", *route)
            run(["ip", "route", "add", *route, "dev", network.host_device], "routing to the pods")
        for other in self.nodes:
            if other.number < node.number:
                other.sandbox.run("ip", "route", "add", pods, *via)
                node.sandbox.run("ip", "route", "add", network.node_pods(other.number), "via", other.address)

    def _pause_image(self) -> pathlib.Path:
        """The probe's image, which is the pause image as well: /probe alone."""
        archive = self.state / "probe.tar"
        if not archive.exists():
            layer = images.Layer()
            layer.copy(binaries.path_of("probe"), "probe", 0o755)
            layer.folder("tmp", 0o1777)
            archive.write_bytes(images.oci_archive(PAUSE, layer, ["/probe"], {}, [])[0])
        return archive

    def load(self, archive: pathlib.Path) -> None:
        for node in self.nodes:
            node.load(archive)

    def keep(self) -> None:
        """Lets the cluster outlive its owner."""
        self._remember(owner=None)

    def down(self) -> None:
        self.daemons.kill_all()
        self._forget(keep_logs=False)

    def _forget(self, keep_logs: bool) -> None:
        if self.about.get("tier") == "node":
            self._assemble()
            for node in self.nodes:
                node.remove_cgroup()
                # Kubelet's links to the logs of its pods, in the one folder whose place cannot be chosen.
                for link in pathlib.Path("/var/log/containers").glob("*.log"):
                    if link.is_symlink() and str(link.readlink()).startswith(f"{self.state}/"):
                        link.unlink(missing_ok=True)
        for entry in list(self.state.iterdir()) if self.state.exists() else []:
            if keep_logs and entry == self.daemons.logs:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not keep_logs and self.state.exists():
            self.state.rmdir()
        self.about, self.nodes = {}, []

    def status(self) -> dict[str, bool]:
        return {name: self.daemons.alive(name) for name in self.daemons.recorded()}


def sweep() -> list[str]:
    """Ends clusters whose owner died without ending them; gives their names."""
    home, swept = folder_of_clusters(), []
    for path in sorted(home.glob("*/cluster.json")):
        owner = json.loads(path.read_text()).get("owner")
        if owner and identity(owner["pid"]) != owner:
            Cluster(path.parent.name).down()
            swept.append(path.parent.name)
    return swept


def existing(name: str) -> Cluster:
    cluster = Cluster(name)
    if not cluster.exists:
        raise ClusterError(f"there is no cluster {name}: start one with `cluster.py up --name {name}`")
    return cluster


def up(args: argparse.Namespace) -> None:
    began = time.monotonic()
    cluster = Cluster(args.name)
    cluster.up(args.tier, args.nodes, args.image, args.rate)
    print(f"cluster {cluster.name} ({cluster.tier}) is ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(f"export KUBECONFIG={cluster.kubeconfig}")


def down(args: argparse.Namespace) -> None:
    home = folder_of_clusters()
    names = sorted(p.name for p in home.iterdir()) if args.all and home.exists() else [args.name]
    for name in names:
        Cluster(name).down()
        print(f"cluster {name} is gone", file=sys.stderr)


def status(args: argparse.Namespace) -> int:
    alive = existing(args.name).status()
    for name, runs in alive.items():
        print(f"{'running' if runs else 'ended  '} {name}")
    return 0 if all(alive.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    by_name = argparse.ArgumentParser(add_help=False)
    by_name.add_argument("--name", default="default")
    command = commands.add_parser("up", parents=[by_name])
    command.add_argument("--nodes", type=int, default=1)
    command.add_argument("--tier", choices=["auto", "node", "control-plane"], default="auto")
    command.add_argument("--image", type=pathlib.Path, action="append", default=[], help="an archive to load into nodes")
    command.add_argument("--rate", type=int, default=100, help="API calls a second that each controller may make")
    command.set_defaults(run=up)
    command = commands.add_parser("load", parents=[by_name])
    command.add_argument("archive", type=pathlib.Path)
    command.set_defaults(run=lambda args: existing(args.name).load(args.archive))
    command = commands.add_parser("volumes", parents=[by_name])
    command.add_argument("namespace")
    command.add_argument("--model", type=pathlib.Path, default=os.environ.get("STRATA_TEST_MODEL", volumes.MODEL))
    command.set_defaults(run=lambda args: volumes.provide(existing(args.name), args.namespace, args.model))
    commands.add_parser("kubeconfig", parents=[by_name]).set_defaults(
        run=lambda args: print(existing(args.name).kubeconfig)
    )
    commands.add_parser("status", parents=[by_name]).set_defaults(run=status)
    command = commands.add_parser("down", parents=[by_name])
    command.add_argument("--all", action="store_true", help="every cluster of this user")
    command.set_defaults(run=down)
    args = parser.parse_args()
    try:
        return args.run(args) or 0
    except (ClusterError, binaries.BuildError, images.ImageError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
