"""The real processes of a scenario: a scheduler, engines, stand-ins."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call(port: int, method: str, path: str, body: dict | None = None, timeout: float = 30) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for(what: str, holds, within: float = 90.0, pause: float = 0.05):
    """Until `holds()` gives something true; an `OSError` in it counts as not yet."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            found = holds()
            if found:
                return found
        except OSError:
            pass
        time.sleep(pause)
    raise RuntimeError(f"within {within:.0f} s it did not come about that {what}")


class Process:
    def __init__(self, name: str, folder: pathlib.Path, command: list[str], port: int | None = None):
        self.name, self.command, self.port = name, command, port
        self.log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE if self.port is None else log,
                                            stderr=log, start_new_session=True)
        if self.port is None:
            line = self.process.stdout.readline()
            if not line.strip().isdigit():
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")
            self.port = int(line)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, which: int) -> None:
        self.process.send_signal(which)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def is_up(self, path: str) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
        return call(self.port, "GET", path)[0] == 200


def engine(strata: str, model: str, folder: pathlib.Path, number: int) -> Process:
    port = free_port()
    return Process(f"engine-{number}", folder, [
        strata, "engine", "--model", model, "--listen", f"127.0.0.1:{port}", "--served-model-name", "chaos",
        "--threads", "1", "--kv-cache-blocks", "400", "--max-sequences", "8", "--max-model-len", "1024",
    ], port)


def stand_in(folder: pathlib.Path, number: int, port: int = 0, *more: str) -> Process:
    """Takes a free port by itself, so that no two race for one."""
    script = str(pathlib.Path(__file__).with_name("run.py"))
    process = Process(f"replica-{number}", folder, [sys.executable, script, "replica", "--port", str(port), *more])
    process.command[4] = str(process.port)
    return process


class Scheduler(Process):
    def __init__(self, strata: str, folder: pathlib.Path, *source: str):
        port = free_port()
        super().__init__("scheduler", folder, [strata, "scheduler", *source, "--listen", f"127.0.0.1:{port}"], port)

    def states(self) -> dict[str, dict]:
        """What it says of each replica, by address."""
        models = json.loads(call(self.port, "GET", "/replicas")[1])["models"]
        return {s["url"].removeprefix("http://"): s for states in models.values() for s in states}

    def metrics(self) -> str:
        return call(self.port, "GET", "/metrics")[1].decode()

    def memory(self) -> int:
        """Bytes of this process's own, without files that are mapped."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return sum(int(l.split()[1]) * 1024 for l in status if l.startswith(("RssAnon:", "RssShmem:")))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def descriptors(self) -> list[str]:
        found = []
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{self.process.pid}/fd/{fd}"))
            except OSError:
                pass
        return found

    def connections(self) -> list[int]:
        """The ports that its connections go to, those that clients made left out."""
        inodes = {m[1] for d in self.descriptors() if (m := re.fullmatch(r"socket:\[(\d+)\]", d))}
        ports = []
        with open(f"/proc/{self.process.pid}/net/tcp") as table:
            for line in list(table)[1:]:
                fields = line.split()
                here, there = (int(fields[i].rsplit(":", 1)[1], 16) for i in (1, 2))
                if fields[9] in inodes and here != self.port and there:
                    ports.append(there)
        return ports

    def processor_seconds(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Looks at the scheduler's account of one replica ten times a second: when it got requests, whether it was ready."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.looks: list[tuple[float, dict[str, dict]]] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            began = time.monotonic()
            try:
                self.looks.append((began, self.scheduler.states()))
            except (OSError, ValueError, http.client.HTTPException):
                pass

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def sent(self, address: str) -> list[tuple[float, int]]:
        """When it was seen that requests had been sent there, and how many since the look before."""
        found, before = [], None
        for at, states in self.looks:
            count = states.get(address, {}).get("requests", 0)
            if before is not None and count > before:
                found.append((at, count - before))
            before = count
        return found
