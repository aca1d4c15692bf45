"""Daemons that outlive the process which starts them: logs in files, pids on record, ended by force."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

from .errors import ClusterError

TAIL_LINES = 15


def wait_for(what: str, condition: Callable[[], object], deadline_s: float, hint: Callable[[], str] | None = None):
    """Polls until `condition` gives something true, and returns that; an error names `what` and adds the hint."""
    end = time.monotonic() + deadline_s
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise ClusterError(f"waited {deadline_s:.0f} s for {what}" + (f"\n{hint()}" if hint else ""))
        time.sleep(0.05)


def _started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with its pid it names one process for ever."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def identity(pid: int) -> dict:
    """What names one process for ever, as JSON."""
    return {"pid": pid, "started": _started_at(pid)}


class Daemons:
    """The processes of one cluster, recorded in `pids.json` of its folder as they start."""

    def __init__(self, state: pathlib.Path):
        self.logs = state / "logs"
        self._record = state / "pids.json"
        self._children: dict[str, subprocess.Popen] = {}

    def recorded(self) -> dict[str, dict]:
        return json.loads(self._record.read_text()) if self._record.exists() else {}

    def log(self, name: str) -> pathlib.Path:
        return self.logs / f"{name}.log"

    def start(self, name: str, command: list[str], **environment: str) -> int:
        self.logs.mkdir(parents=True, exist_ok=True)
        # Nothing of the caller's environment: a proxy variable would send the daemons' own calls astray.
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", **environment}
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env, cwd="/"
            )
        self._children[name] = child
        record = self.recorded()
        record[name] = {**identity(child.pid), "command": command, "env": environment}
        part = self._record.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1))
        part.replace(self._record)
        return child.pid

    def alive(self, name: str) -> bool:
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            return False
        entry = self.recorded().get(name)
        return entry is not None and _started_at(entry["pid"]) == entry["started"] is not None

    def tail(self, name: str) -> str:
        log = self.log(name)
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
        return "\n".join([f"the log of {name} is {log}; it ends with", *(f"  {line[:400]}" for line in lines)])

    def wait(self, name: str, what: str, condition: Callable[[], object], deadline_s: float) -> None:
        """Waits for what a daemon brings about; its death ends the wait at once."""

        def check():
            if not self.alive(name):
                raise ClusterError(f"{name} ended while waiting for {what}\n{self.tail(name)}")
            return condition()

        wait_for(what, check, deadline_s, lambda: self.tail(name))

    def kill(self, name: str) -> None:
        """Ends one daemon by SIGKILL (the API server may hang on SIGTERM) and waits until it is gone."""
        entry = self.recorded().get(name)
        if entry is None or _started_at(entry["pid"]) != entry["started"]:
            return
        try:
            os.killpg(entry["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        child = self._children.get(name)

        def gone() -> bool:
            if child is not None and child.poll() is not None:
                return True
            state = pathlib.Path(f"/proc/{entry['pid']}/stat")
            return _started_at(entry["pid"]) != entry["started"] or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"

        wait_for(f"the end of {name} (pid {entry['pid']})", gone, 20)

    def kill_all(self) -> None:
        for name in reversed(self.recorded()):
            self.kill(name)
