"""What this machine can do: whether it runs containers, and how to make it so."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

from .node import CGROUPS, CNI, unified_cgroups

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "openssl": "openssl",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
INOTIFY = pathlib.Path("/proc/sys/fs/inotify/max_user_instances")
INSTANCES = 1024


def missing_packages() -> list[str]:
    missing = {package for command, package in PACKAGES.items() if not shutil.which(command, path=PATH)}
    if not (CNI / "ptp").exists():
        missing.add("containernetworking-plugins")
    return sorted(missing)


def install_packages() -> None:
    """Installs what Debian has and this machine lacks, when that is allowed; says what it does."""
    missing = missing_packages()
    if not missing or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print(f"installing from Debian: {' '.join(missing)}", file=sys.stderr, flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    # Debian starts a packaged containerd where there is systemd; the driver runs its own beside it.
    if subprocess.run(install, env=env, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], env=env, capture_output=True, check=False)
        subprocess.run(install, env=env, stdout=sys.stderr, check=False)


def obstacles() -> list[str]:
    """Why no container can be run here; empty when they can."""
    if os.geteuid() != 0:
        return ["a node needs root"]
    found = []
    if missing := missing_packages():
        found.append(f"missing packages: run 'apt-get install {' '.join(missing)}'")
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    ran = subprocess.run(spaces, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        found.append(f"no namespaces can be made: {ran.stderr.strip()}")
    root = CGROUPS if unified_cgroups() else CGROUPS / "memory"
    if not os.access(root, os.W_OK):
        found.append(f"cgroups cannot be written: {root}")
    return found


def raise_limits() -> None:
    """Each kubelet and containerd watches many files; the usual limit holds about one node."""
    if INOTIFY.exists() and int(INOTIFY.read_text()) < INSTANCES:
        INOTIFY.write_text(str(INSTANCES))
        print(f"raised {INOTIFY} to {INSTANCES}", file=sys.stderr, flush=True)
