"""Replicas come and go each second under load: nobody may notice, and nothing of the gone may stay."""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import threading
import time

from load import Load, Outcome, percentile
from processes import Process, Scheduler, call, stand_in, wait_for

# How a replica goes. An unlisted one runs on for a while, so that what is still sent to it is seen.
WAYS = ["drained", "kept", "killed-late", "killed-listed"]
# After it was unlisted, a replica may be asked for its metrics for so long: the file is looked at each 50 ms.
LAST_LOOK = 3.0
# A connection to a gone replica may rest in the pool for 30 s, which is looked through each 30 s; the rest is for
# a busy machine.
LAST_CONNECTION = 75.0
# A replica that is kept runs on for so long after it was unlisted: it does not close the scheduler's connections.
KEPT = 90.0
# Between two looks at the scheduler's process.
LOOK = 2.0


@dataclasses.dataclass
class Gone:
    """A replica that is no longer listed."""

    process: Process
    way: str
    unlisted: float
    killed: float | None = None


class Churn:
    def __init__(self, args: argparse.Namespace, folder: pathlib.Path):
        self.args, self.folder, self.chance = args, folder, random.Random(args.seed)
        self.file = folder / "endpoints.json"
        self.listed: list[Process] = []
        self.gone: list[Gone] = []
        self.starting: list[threading.Thread] = []
        self.number = self.came = self.left_streaming = 0
        self.looks: list[dict] = []
        self.lock = threading.Lock()
        self.faults: list[str] = []
        for thread in [threading.Thread(target=self.begin_one) for _ in range(args.replicas)]:
            thread.start()
            self.starting.append(thread)
        for thread in self.starting:
            thread.join()
        self.starting = []
        self.write()
        self.scheduler = Scheduler(args.strata, folder, "--endpoints", str(self.file))

    def begin_one(self) -> None:
        """A replica with a name that never was, listed when it answers."""
        with self.lock:
            number = self.number
            self.number += 1
        # Every other one tells what it has cached.
        process = stand_in(self.folder, number, 0, "--token", "0.05", "--tells", str(2000 * (number % 2)))
        wait_for(f"{process.name} is up", lambda: process.is_up("/health"))
        with self.lock:
            self.listed.append(process)
            self.came += 1

    def write(self) -> None:
        with self.lock:
            replicas = [{"name": p.name, "url": f"http://{p.address}"} for p in self.listed]
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps({"models": {"chaos": {"replicas": replicas}}}))
        os.replace(fresh, self.file)

    def step(self) -> None:
        """One goes, and one comes; those that went a while ago are looked at and ended."""
        with self.lock:
            process = self.chance.choice(self.listed)
        way = self.chance.choice(WAYS)
        streaming = self.scheduler.states().get(process.address, {}).get("in_flight", 0) > 0
        self.left_streaming += streaming
        gone = Gone(process, way, time.monotonic())
        if way == "killed-listed":
            gone.killed = time.monotonic()
            process.kill()
            # As long as a kubelet and an endpoint controller need to tell.
            time.sleep(0.3)
        with self.lock:
            self.listed.remove(process)
        self.write()
        gone.unlisted = time.monotonic()
        if way == "killed-late":
            gone.killed = time.monotonic()
            process.kill()
        elif way == "drained":
            process.signal(signal.SIGTERM)
        with self.lock:
            self.gone.append(gone)
        thread = threading.Thread(target=self.begin_one, daemon=True)
        thread.start()
        self.starting = [t for t in self.starting if t.is_alive()] + [thread]

    def look_after_gone(self) -> None:
        """Ends replicas that were kept on after they were unlisted, and notes when they were last asked."""
        now = time.monotonic()
        for gone in self.gone:
            process = gone.process
            if gone.way == "kept" and process.process.poll() is None and now - gone.unlisted > KEPT:
                self.note_last_look(gone)
                process.kill()
            elif process.process.poll() is not None and process.process.stdout:
                process.kill()

    def note_last_look(self, gone: Gone) -> None:
        seen = json.loads(call(gone.process.port, "GET", "/chaos")[1])
        last = time.monotonic() - seen["since_last_look"] - gone.unlisted
        if last > LAST_LOOK:
            self.faults.append(f"{gone.process.name} was asked for metrics {last:.1f} s after it was unlisted")

    def look(self) -> None:
        text = self.scheduler.metrics()
        series = [l for l in text.splitlines() if l and not l.startswith("#")]
        named = set(re.findall(r'model_server_pod="([^"]+)"', text))
        now = time.monotonic()
        with self.lock:
            listed = {p.name for p in self.listed} | {g.process.name for g in self.gone if now - g.unlisted < 3}
            long_gone = {g.process.port for g in self.gone if now - g.unlisted > LAST_CONNECTION}
            long_gone -= {p.port for p in self.listed} | {
                g.process.port for g in self.gone if now - g.unlisted <= LAST_CONNECTION}
        if strangers := named - listed:
            self.faults.append(f"series of gone replicas: {sorted(strangers)[:3]}")
        connections = self.scheduler.connections()
        if lasting := [port for port in connections if port in long_gone]:
            self.faults.append(f"{len(lasting)} connections to replicas that are gone for {LAST_CONNECTION:.0f} s")
        self.looks.append({
            "memory": self.scheduler.memory(), "descriptors": len(self.scheduler.descriptors()),
            "threads": self.scheduler.threads(), "series": len(series), "connections": len(connections),
            "replicas": len(named), "told_blocks": told_blocks(text),
        })

    def run(self) -> list[Outcome]:
        wait_for("the scheduler has all replicas",
                 lambda: sum(s["ready"] for s in self.scheduler.states().values()) == self.args.replicas)
        load = Load(self.scheduler.port, "chaos", self.args.rate, (10, 20, 80), 60, timeout=150)
        load.start()
        try:
            end, due, next_look = time.monotonic() + self.args.minutes * 60, time.monotonic(), 0.0
            while time.monotonic() < end:
                self.step()
                self.look_after_gone()
                if time.monotonic() >= next_look:
                    self.look()
                    next_look = time.monotonic() + LOOK
                due += 1.0
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            load.stop()
        for thread in self.starting:
            thread.join()
        return load.outcomes

    def settle(self) -> dict:
        """Unlists all; then nothing may be left of them."""
        went = {way: sum(g.way == way for g in self.gone) for way in WAYS}
        for gone in self.gone:
            if gone.way == "kept" and gone.process.process.poll() is None:
                time.sleep(max(0.0, gone.unlisted + LAST_LOOK + 1 - time.monotonic()))
                self.note_last_look(gone)
        with self.lock:
            now = time.monotonic()
            self.gone += [Gone(p, "kept", now) for p in self.listed]
            last, self.listed = self.listed, []
        self.write()
        wait_for("no connection to a replica is left", lambda: not self.scheduler.connections(), LAST_CONNECTION, 1)
        for process in last:
            self.note_last_look(Gone(process, "kept", now))
        before = self.scheduler.processor_seconds()
        time.sleep(10)
        running = re.findall(r"^inference_objective_running_requests\S* (\S+)$", self.scheduler.metrics(), re.M)
        return {
            "went": went,
            "processors_at_rest": round((self.scheduler.processor_seconds() - before) / 10, 4),
            "running_at_rest": sum(map(float, running)),
            "threads_at_rest": self.scheduler.threads(),
            "series_of_replicas_at_rest": self.scheduler.metrics().count("model_server_pod="),
        }

    def stop(self) -> None:
        for process in [*self.listed, *(g.process for g in self.gone), self.scheduler]:
            process.kill()


def told_blocks(metrics: str) -> int:
    return int(float(re.search(r"^strata_scheduler_told_blocks (\S+)$", metrics, re.M)[1]))


def excused(outcome: Outcome, killed: dict[str, list[Gone]]) -> bool:
    """A stream that had begun on a replica that was killed while it ran."""
    if not outcome.broke:
        return False
    of_it = killed.get(outcome.replica, [])
    return any(g.killed is not None and outcome.began <= g.killed <= outcome.ended for g in of_it)


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        churn = Churn(args, folder)
        try:
            outcomes = churn.run()
            at_rest = churn.settle()
        finally:
            churn.stop()
    killed: dict[str, list[Gone]] = {}
    for gone in churn.gone:
        # The header names a replica as the endpoints file does.
        killed.setdefault(gone.process.name, []).append(gone)
    errors = [o for o in outcomes if o.error]
    not_excused = [o for o in errors if not excused(o, killed)]
    quarter = max(1, len(churn.looks) // 4)
    second, last = churn.looks[quarter : 2 * quarter] or churn.looks, churn.looks[-quarter:]
    most = lambda looks, what: max(look[what] for look in looks)  # noqa: E731
    flat = {what: [most(second, what), most(last, what)] for what in churn.looks[0]}
    latencies = [o.latency for o in outcomes if not o.error]
    flat["memory_mib"] = [round(n / (1 << 20), 1) for n in flat["memory"]]
    print(json.dumps({
        "minutes": args.minutes,
        "came": churn.came,
        "went": at_rest.pop("went"),
        "went_with_requests_under_way": churn.left_streaming,
        "requests": len(outcomes),
        "streams_broken_by_kills": len(errors) - len(not_excused),
        "other_errors": len(not_excused),
        "latency_s": {f"p{n}": round(percentile(latencies, n / 100) or 0, 2) for n in (50, 99)},
        "most_in_second_and_last_quarter": {what: str(two) for what, two in flat.items() if what != "memory"},
        "at_rest": at_rest,
    }, indent=2))
    for outcome in not_excused[:5]:
        print(f"error: {outcome}", file=sys.stderr)
    for fault in churn.faults[:5]:
        print(f"fault: {fault}", file=sys.stderr)
    grown = lambda what, share, beside: flat[what][1] <= flat[what][0] * share + beside  # noqa: E731
    well = {
        "no error but of streams on killed replicas": not not_excused,
        "memory is flat": grown("memory", 1.05, 8 << 20),
        "descriptors are flat": grown("descriptors", 1.2, 20),
        "threads are flat": grown("threads", 1.0, 4),
        # What is gone is swept away by and by.
        "told blocks are flat": grown("told_blocks", 1.5, 16384),
        "series are flat": grown("series", 1.05, 8),
        "nothing of a gone replica stays": not churn.faults,
        "nothing runs at rest": not at_rest["running_at_rest"] and not at_rest["series_of_replicas_at_rest"],
        "a scheduler without replicas rests": at_rest["processors_at_rest"] < 0.02,
    }
    for what, holds in well.items():
        if not holds:
            print(f"does not hold: {what}", file=sys.stderr)
    return 0 if all(well.values()) else 1
