"""One node: containerd, kubelet and kube-proxy in a sandbox, with their own folders, sockets and cgroups."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

from . import binaries
from .api import Api
from .control_plane import DOMAIN, ControlPlane
from .daemon import Daemons, wait_for
from .errors import ClusterError
from .sandbox import Sandbox, run

PAUSE = "docker.io/library/strata-e2e-probe:1"
CNI = pathlib.Path("/usr/lib/cni")
CGROUPS = pathlib.Path("/sys/fs/cgroup")


def unified_cgroups() -> bool:
    return (CGROUPS / "cgroup.controllers").exists()


def overlay_works(folder: pathlib.Path) -> bool:
    """Whether an overlay can be mounted in the folder: not where it is on an overlay itself."""
    probe = folder / "overlay-probe"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
    try:
        run(["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, f"{probe}/merged"], "an overlay")
        return True
    except ClusterError:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)


class Node:
    def __init__(self, state: pathlib.Path, daemons: Daemons, control_plane: ControlPlane, number: int, cluster: str):
        self.name = f"node-{number}"
        self.number = number
        self.folder = state / self.name
        self.daemons = daemons
        self.control_plane = control_plane
        self.address = control_plane.network.node(number)
        self.sandbox = Sandbox(self.name, daemons)
        self.cgroup = f"strata-k8s-{cluster}-{self.name}"

    def _name(self, daemon: str) -> str:
        return f"{daemon}-{self.name}"

    @property
    def socket(self) -> pathlib.Path:
        return self.folder / "containerd.sock"

    def start_runtime(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        network = self.control_plane.network
        conf = self.folder / "cni"
        conf.mkdir(exist_ok=True)
        # A wire for each pod, routed: unlike a bridge it needs no netfilter on layer 2 for Services.
        plugin = {
            "type": "ptp",
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "addresses"),
                "ranges": [[{"subnet": network.node_pods(self.number)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        body = {"cniVersion": "0.4.0", "name": "strata", "plugins": [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]}
        (conf / "10-strata.conflist").write_text(json.dumps(body))
        snapshotter = "overlayfs" if overlay_works(self.folder) else "native"
        config = self.folder / "containerd.toml"
        config.write_text(
            f"""version = 2
root = "{self.folder}/containerd"
state = "{self.folder}/run"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE no score can be lowered, and every container would fail.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "{conf}"
"""
        )
        self.sandbox.start(self._name("containerd"), ["containerd", "--config", str(config), "--log-level", "warn"])

    def ctr(self, *args: str) -> str:
        return self.sandbox.run("ctr", "--address", str(self.socket), "--namespace", "k8s.io", *args)

    def wait_runtime(self) -> None:
        def serves() -> bool:
            try:
                return self.socket.exists() and bool(self.ctr("version"))
            except ClusterError:
                return False

        self.daemons.wait(self._name("containerd"), f"containerd of {self.name}", serves, 30)

    def load(self, image: pathlib.Path) -> None:
        self.ctr("images", "import", "--all-platforms", str(image))

    def _make_cgroup(self) -> None:
        """Kubelet's own root, so that nodes stand side by side and nothing of them is left behind."""
        if unified_cgroups():
            want = {"cpu", "cpuset", "memory", "pids"}
            try:
                (CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in sorted(want)))
                (CGROUPS / self.cgroup).mkdir(exist_ok=True)
            except OSError as error:
                raise ClusterError(f"cgroups cannot be delegated from {CGROUPS}: {error}") from error
            return
        for controller in CGROUPS.iterdir():
            if not (controller / "cgroup.procs").exists():
                continue
            own = controller / self.cgroup
            own.mkdir(exist_ok=True)
            for inherited in ("cpuset.cpus", "cpuset.mems"):
                if (own / inherited).exists():
                    (own / inherited).write_text((controller / inherited).read_text())

    def remove_cgroup(self) -> None:
        for top in [CGROUPS, *CGROUPS.iterdir()]:
            own = top / self.cgroup
            if own.is_dir():
                for folder, _, _ in os.walk(own, topdown=False):
                    try:
                        os.rmdir(folder)
                    except OSError:
                        pass

    def start_kubelet(self) -> None:
        self._make_cgroup()
        network = self.control_plane.network
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.control_plane.ca.crt)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "clusterDNS": [network.control_plane],
            "clusterDomain": DOMAIN,
            "resolvConf": "/dev/null",
            "podLogsDir": str(self.folder / "pods"),
            "volumePluginDir": str(self.folder / "volume-plugins"),
            # The images were loaded by hand: were they collected, nothing could pull them again.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "nodeStatusUpdateFrequency": "5s",
            # What changes in a Secret reaches the pods that mount it as often.
            "syncFrequency": "10s",
            "maxPods": 110,
            # A crashed container is tried again soon: tests wait for recoveries.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
        }
        path = self.folder / "kubelet.json"
        path.write_text(json.dumps(config))
        self.sandbox.start(
            self._name("kubelet"),
            [
                str(binaries.path_of("kubelet")),
                f"--config={path}",
                f"--kubeconfig={self.control_plane.kubeconfig(self.name)}",
                f"--root-dir={self.folder / 'kubelet'}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                f"--cert-dir={self.folder / 'kubelet-certificates'}",
            ],
            PATH=f"{CNI}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )

    def start_proxy(self) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(self.control_plane.kubeconfig("kube-proxy"))},
            "clusterCIDR": self.control_plane.network.pods,
            "hostnameOverride": self.name,
            "conntrack": {"maxPerCore": 0, "min": 0},
            "nftables": {"minSyncPeriod": "0s"},
        }
        path = self.folder / "kube-proxy.json"
        path.write_text(json.dumps(config))
        self.sandbox.start(self._name("kube-proxy"), [str(binaries.path_of("kube-proxy")), f"--config={path}"])

    def ready(self, api: Api) -> bool:
        found = api.find(f"/api/v1/nodes/{self.name}")
        conditions = (found or {}).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def wait_ready(self, api: Api) -> None:
        self.daemons.wait(self._name("kubelet"), f"{self.name} to be Ready", lambda: self.ready(api), 60)
        wait_for(
            f"kube-proxy of {self.name}",
            lambda: "table ip kube-proxy" in self.sandbox.run("nft", "list", "tables"),
            30,
            lambda: self.daemons.tail(self._name("kube-proxy")),
        )
