#!/usr/bin/env python3
"""Run the modules of e2e/k8s, each with a cluster of its own.

    python e2e/k8s/run.py --strata target/debug/strata --model MODEL.gguf [--jobs 2] [pytest's arguments]

Modules that run pods follow one another, `--jobs` of them at a time; beside them run those that need a
control plane alone. Prints each module's output when it has ended, and the sum of all in pytest's own form
at the end. The modules that take longest begin first. With --kubeconfig all share one cluster and run one
by one.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "scripts")]

import given  # noqa: E402
import image as images  # noqa: E402
from driver import machine  # noqa: E402
from kube import Kube  # noqa: E402

# Modules that take longest, so that none of them begins last.
LONGEST = ["chart", "rollout", "scarce_devices", "scaling", "internal_tls", "operator", "operator_faults", "operator_leader"]
# More than any module takes on a busy machine: a hanging one must not take the others' time.
LIMIT_S = 1500
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)")


def modules() -> list[pathlib.Path]:
    found = {path.stem.removeprefix("test_"): path for path in HERE.glob("test_*.py")}
    first = [found.pop(name) for name in LONGEST if name in found]
    return first + [found[name] for name in sorted(found)]


def lanes(paths: list[pathlib.Path]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Those that run pods, and those that do not."""
    without = [path for path in paths if "mark.control_plane" in path.read_text()]
    return [path for path in paths if path not in without], without


def counts(output: str) -> dict[str, int]:
    """What pytest's last line says."""
    lines = [line for line in output.splitlines() if COUNT.search(line) and " in " in line]
    found = {} if not lines else {kind: int(number) for number, kind in COUNT.findall(lines[-1])}
    return {("failed" if kind.startswith("error") else kind): number for kind, number in found.items()}


class Run:
    def __init__(self, arguments: list[str]):
        self.arguments = arguments
        self.lanes = lanes(modules())
        self.lock = threading.Lock()
        self.total: dict[str, int] = {}
        self.failed: list[str] = []
        self.ended = 0

    def work(self, *lanes: list[pathlib.Path]) -> None:
        while True:
            with self.lock:
                lane = next((lane for lane in lanes if lane), None)
                if lane is None:
                    return
                path = lane.pop(0)
            began = time.monotonic()
            command = [sys.executable, "-m", "pytest", "-q", "-rs", str(path), *self.arguments]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=LIMIT_S, check=False)
                output, code = done.stdout, done.returncode
            except subprocess.TimeoutExpired as hung:
                output, code = (hung.stdout or b"").decode(errors="replace") + f"\ngiven up after {LIMIT_S} s\n", 1
            with self.lock:
                self.ended += 1
                if code == 5 and "-k" in self.arguments:
                    continue  # Nothing here has that name.
                found = counts(output)
                for kind, number in found.items():
                    self.total[kind] = self.total.get(kind, 0) + number
                if code != 0 or not found:
                    self.failed.append(path.name)
                    if not found.get("failed"):
                        self.total["failed"] = self.total.get("failed", 0) + 1
                print(f"== {path.name}: {time.monotonic() - began:.0f} s\n{output}", flush=True)


def a_strata_is_there(arguments: list[str]) -> str | None:
    """The tests install and remove things of the usual names: never where somebody uses them."""
    at = next(i for i, argument in enumerate(arguments) if argument.startswith("--kubeconfig"))
    file = arguments[at].partition("=")[2] or arguments[at + 1]
    kube = Kube(pathlib.Path(file).resolve())
    try:
        return given.in_use(kube)
    finally:
        kube.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("E2E_JOBS", "1")))
    known, rest = parser.parse_known_args()
    began = time.monotonic()
    shared = any(argument.startswith("--kubeconfig") for argument in rest)
    if shared and (found := a_strata_is_there(rest)):
        print(found, file=sys.stderr)
        return 2
    if not shared:
        # Once, before all begin: several at a time would fight for apt's lock.
        machine.install_packages()
    with tempfile.TemporaryDirectory() as folder:
        archive = pathlib.Path(folder) / "strata.tar"
        images.strata_image(known.strata.resolve(), archive, strip=True)
        run = Run(["--strata", str(known.strata), "--archive", str(archive), *rest])
        pods, control_plane = run.lanes
        first = (pods, control_plane)
        works = [first] if shared else [first] * known.jobs + [(control_plane,)]
        threads = [threading.Thread(target=run.work, args=lanes) for lanes in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if run.ended != len(modules()):
        run.failed.append(f"{len(modules()) - run.ended} modules that were never judged")
    if run.failed:
        print(f"failed: {', '.join(run.failed)}")
    kinds = ["passed", "failed", "skipped", "xfailed", "xpassed"]
    sums = ", ".join(f"{run.total[kind]} {kind}" for kind in kinds if run.total.get(kind))
    print(f"{sums} in {time.monotonic() - began:.2f}s")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
