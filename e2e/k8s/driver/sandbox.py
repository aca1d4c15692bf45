"""A machine of its own inside this one: network, mounts and processes that all end with one process.

A sandbox is held by an `unshare` whose child is the first process of a process namespace. When the
holder is killed the kernel ends everything in it, containers too, and network devices and mounts go
with the last process: nothing is left to clean but folders and cgroups, even after the driver crashed.
"""

from __future__ import annotations

import subprocess
import sys

from .daemon import Daemons
from .errors import ClusterError

# Reaps orphans (container shims leave many) by ignoring their death, and does nothing else.
_INIT = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nprint('held', flush=True)\nwhile True: signal.pause()"


def run(command: list[str], what: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if ran.returncode != 0:
        raise ClusterError(f"{what} failed: {(ran.stderr or ran.stdout).strip()}\nthe command was: {' '.join(command)}")
    return ran.stdout


class Sandbox:
    def __init__(self, name: str, daemons: Daemons):
        self.name = name
        self.daemons = daemons
        self._holder = f"sandbox-{name}"

    def create(self) -> None:
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # With isolated mode Python takes no configuration of the user's.
        self.daemons.start(self._holder, [*command, "--", sys.executable, "-I", "-c", _INIT])
        held = self.daemons.log(self._holder)
        self.daemons.wait(self._holder, f"the namespaces of {self.name}", lambda: "held" in held.read_text(), 20)
        # Kubelet and container runtime hand mounts to each other: theirs must spread, but not to this machine.
        self.run("mount", "--make-rshared", "/")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self.daemons.recorded()[self._holder]["pid"]

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command inside."""
        spaces = [f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt"]
        return ["nsenter", *spaces, f"--pid=/proc/{self.pid}/ns/pid_for_children", "--wd=/", "--", *command]

    def run(self, *command: str) -> str:
        return run(self.enter(*command), f"{command[0]} in {self.name}")

    def start(self, name: str, command: list[str], **environment: str) -> int:
        return self.daemons.start(name, self.enter(*command), **environment)

    def sysctl(self, name: str, value: str) -> None:
        self.run("sh", "-c", f"echo {value} > /proc/sys/{name.replace('.', '/')}")

    def plug(self, device: str, address: str, peer: Sandbox | None, peer_device: str) -> None:
        """Gives this sandbox a network device that is wired to one of `peer`, or of the machine itself."""
        end = ["netns", str(peer.pid)] if peer else []
        run(
            ["ip", "link", "add", peer_device, *end, "type", "veth", "peer", "name", device, "netns", str(self.pid)],
            f"making the network device {peer_device}",
        )
        self.run("ip", "address", "add", address, "dev", device)
        self.run("ip", "link", "set", device, "up")


