"""One fault of one replica at a time, under load, and the bounds that a data plane should hold."""

import argparse
import collections
import dataclasses
import pathlib
import signal
import tempfile
import time

from load import Load, Outcome, percentile
from processes import Process, Scheduler, Watch, call, engine, stand_in, wait_for
from replica import FAULTS

REAL = ["killed", "frozen", "restarted-empty"]
STAND_IN = [name for name in FAULTS if name != "none"]
# What a new version of an engine does to all of its replicas at once: they answer, and tell nonsense.
ALL = [f"all-{name}" for name in FAULTS if name in
       ("says-nan", "says-garbage", "says-negative", "says-huge", "counts-huge", "metrics-hang")]

# README.md says why each bound is as it is.
# Seconds after which a replica must get no more requests, by fault.
OUT_WITHIN = {"killed": 2.0, "frozen": 6.0, "restarted-empty": 5.0, "says-busy": 2.0}
# Seconds until the first byte of a request that was at a replica when it froze: it can go elsewhere by then.
MOVED_WITHIN = 12.0
# Errors that clients may see of a replica that is well by all that it tells.
ERRORS_500 = 20
# Seconds after which a replica that is well again must have got a request.
USED_WITHIN = 15.0
# A latency during a fault, of requests to other replicas: so many times that before it, and so many seconds.
SLOWER = (3.0, 1.0)
# More than its fair share, by chance alone: a share of 150 requests among four varies by this much.
CHANCE = 0.10
# Tokens of a byte block, by which a prediction may be off.
BLOCK = 64


@dataclasses.dataclass
class Record:
    """A scenario that was played."""

    fault: str
    replicas: int
    victim: str
    began: float
    ended: float
    outcomes: list[Outcome]
    watch: Watch
    ready_again: float | None = None

    def phase(self, name: str) -> list[Outcome]:
        """Those that had ended before the fault, those that met it, those that began after it."""
        def when(o: Outcome) -> str:
            return "after" if o.began >= self.ended else "before" if o.ended < self.began else "during"

        return [o for o in self.outcomes if when(o) == name]

    def sent(self, low: float, high: float) -> list[tuple[float, int]]:
        return [(at, n) for at, n in self.watch.sent(self.victim) if low <= at < high]

    def streams_at_begin(self) -> int:
        met = [o for o in self.outcomes if o.began <= self.began <= o.ended]
        return sum(o.stream for o in met if o.replica == self.victim)

    def share(self) -> float | None:
        """Of all requests that were sent during the fault, those that were sent to its replica."""
        addresses = {a for _, states in self.watch.looks for a in states}
        sent = {a: sum(n for at, n in self.watch.sent(a) if self.began <= at < self.ended) for a in addresses}
        total = sum(sent.values())
        return sent.get(self.victim, 0) / total if total else None

    def last_sent(self) -> float | None:
        sent = self.sent(self.began, self.ended)
        return sent[-1][0] - self.began if sent else None

    def first_byte(self) -> float:
        """The longest time from the fault's begin until the first byte of an answer that had none then."""
        met = [o for o in self.phase("during") if o.began < self.ended and (o.first or o.ended) > self.began]
        return max(((o.first or o.ended) - max(o.began, self.began) for o in met), default=0.0)

    def used_again(self) -> float | None:
        from_when = self.ready_again or self.ended
        sent = self.sent(from_when, float("inf"))
        return sent[0][0] - from_when if sent else None


def play(fault: str, args: argparse.Namespace, folder: pathlib.Path) -> Record:
    real = fault in REAL
    up, replicas = "/ready" if real else "/health", []
    scheduler = watch = load = None
    try:
        for n in range(3 if real else args.replicas):
            replicas.append(engine(args.strata, args.model, folder, n) if real else stand_in(folder, n))
        for replica in replicas:
            wait_for(f"{replica.name} is up", lambda r=replica: r.is_up(up))
        scheduler = Scheduler(args.strata, folder, "--replicas", ",".join(f"http://{r.address}" for r in replicas))
        wait_for("the scheduler has all replicas",
                 lambda: sum(s["ready"] for s in scheduler.states().values()) == len(replicas))
        watch = Watch(scheduler)
        rate = args.real_rate if real else args.rate
        load = Load(scheduler.port, "chaos", rate, (16, 64) if real else (10, 20), 60, timeout=150)
        load.start()
        time.sleep(args.before)
        # With work under way there, or the fault would be none.
        victim = wait_for("a replica streams one answer and has not begun another",
                          lambda: busiest(load, scheduler, replicas), within=120, pause=0.01)
        sick = replicas if fault in ALL else [victim]
        began = time.monotonic()
        for replica in sick:
            begin(fault.removeprefix("all-"), replica)
        time.sleep(args.during)
        ended = time.monotonic()
        for replica in sick:
            end(fault, replica)
        ready_again = None
        if fault in ("killed", "restarted-empty"):
            wait_for(f"{victim.name} is up again", lambda: victim.is_up(up))
            ready_again = time.monotonic()
        time.sleep(args.after)
        load.stop()
        record = Record(fault, len(replicas), victim.address, began, ended, load.outcomes, watch, ready_again)
        at_rest(scheduler)
        return record
    finally:
        for part in (load, watch):
            if part:
                part.stop()
        for process in [*replicas, *([scheduler] if scheduler else [])]:
            process.kill()


def busiest(load: Load, scheduler: Scheduler, replicas: list[Process]) -> Process | None:
    streaming, states = load.streaming(), scheduler.states()
    most = max(replicas, key=lambda r: streaming[r.address])
    streams, all_of_it = streaming[most.address], states[most.address]["in_flight"]
    return most if 0 < streams < all_of_it else None


def begin(fault: str, victim: Process) -> None:
    if fault == "killed":
        victim.kill()
    elif fault == "frozen":
        victim.signal(signal.SIGSTOP)
    elif fault == "restarted-empty":
        # In order: it ends what it has begun.
        victim.signal(signal.SIGTERM)
    else:
        call(victim.port, "PUT", "/chaos", {"fault": fault})


def end(fault: str, victim: Process) -> None:
    if fault == "frozen":
        victim.signal(signal.SIGCONT)
    elif fault in ("killed", "restarted-empty"):
        victim.process.wait(timeout=90)
        victim.start()
    else:
        call(victim.port, "PUT", "/chaos", {"fault": "none"})


def at_rest(scheduler: Scheduler) -> None:
    """The books are closed: what ended is not counted as under way."""
    wait_for("nothing is under way in the scheduler's books",
             lambda: all(s["in_flight"] == 0 for s in scheduler.states().values()), within=20)


def first_predictions(record: Record) -> list[Outcome]:
    """Requests to a replica that has just come back, in the order in which they were sent."""
    came = [o for o in record.outcomes if o.replica == record.victim and o.began >= (record.ready_again or 0)]
    return sorted((o for o in came if o.said_cached is not None), key=lambda o: o.began)[:5]


def bounds(record: Record) -> list[tuple[str, bool]]:
    """What must hold, and whether it did."""
    fault, errors = record.fault, [o for o in record.outcomes if o.error]
    early = [o for o in errors if not o.broke]
    checks = []
    if fault == "killed":
        checks.append(("no error before the first byte", not early))
        on_it = [o for o in errors if o.broke and o.replica == record.victim and o.began <= record.began]
        checks.append(("only streams in progress on the killed replica broke", len(on_it) == len(errors)))
    elif fault == "fails-500":
        checks.append((f"at most {ERRORS_500} errors", len(errors) <= ERRORS_500))
    else:
        checks.append(("no error", not errors))
    if fault in OUT_WITHIN:
        last = record.last_sent()
        checks.append((f"no request was sent to it after {OUT_WITHIN[fault]:.0f} s",
                       last is None or last <= OUT_WITHIN[fault]))
    if fault == "frozen":
        checks.append((f"all that had no first byte got one within {MOVED_WITHIN:.0f} s",
                       record.first_byte() <= MOVED_WITHIN))
    fair = 1 / record.replicas
    share = record.share()
    if fault in STAND_IN:
        checks.append((f"it got at most its fair share of {fair:.0%}, and {CHANCE:.0%} for chance",
                       share is not None and share <= fair + CHANCE))
    if fault in STAND_IN or fault in ALL:
        sick = [] if fault in ALL else [record.victim]
        spared = percentile([o.latency for o in record.phase("during") if o.replica not in sick], 0.99)
        usual = percentile([o.latency for o in record.phase("before")], 0.99)
        if spared is not None and usual is not None:
            limit = usual * SLOWER[0] + SLOWER[1]
            checks.append((f"p99 of requests to {'all' if fault in ALL else 'others'} stayed under {limit:.2f} s",
                           spared <= limit))
    again = record.used_again()
    checks.append((f"it was used again within {USED_WITHIN:.0f} s", again is not None and again <= USED_WITHIN))
    if fault in ("killed", "restarted-empty"):
        first = first_predictions(record)
        checks.append(("predictions were made for it after it came back", bool(first)))
        checks.append(("the first says that nothing is cached", bool(first) and first[0].said_cached == 0))
        over = [o for o in first if o.had_cached is not None and o.said_cached > o.had_cached + BLOCK]
        checks.append((f"none of the first five says more than {BLOCK} tokens too much", not over))
    return checks


def seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} s"


def report(record: Record) -> bool:
    print(f"\n## {record.fault}")
    during = [o for o in record.outcomes if o.error]
    for name in ("before", "during", "after"):
        phase = record.phase(name)
        latencies = [o.latency for o in phase]
        firsts = [o.first - o.began for o in phase if o.stream and o.first]
        failed = sum(1 for o in phase if o.error)
        print(f"  {name:7} {len(phase):4} requests, {failed} errors, latency p50 {seconds(percentile(latencies, 0.5))},"
              f" p99 {seconds(percentile(latencies, 0.99))}, first token of streams p50"
              f" {seconds(percentile(firsts, 0.5))}, p99 {seconds(percentile(firsts, 0.99))}")
    kinds = collections.Counter(
        ("broke after it had begun" if o.broke else f"status {o.status or 'none'}", o.error) for o in during)
    for (kind, what), count in kinds.most_common(6):
        print(f"  error   {count} x {kind}: {what}")
    held = [o.latency for o in record.outcomes
            if o.replica == record.victim and o.began < record.ended and o.ended > record.began and not o.error]
    print(f"  victim  {record.streams_at_begin()} streams were under way; its requests took at most"
          f" {seconds(max(held, default=None))}; longest wait of all for a first byte {record.first_byte():.2f} s")
    print(f"  victim  share during the fault {record.share() or 0:.1%}, fair {1 / record.replicas:.1%};"
          f" last request sent to it {seconds(record.last_sent())} after the fault began")
    last_error = max((o.ended for o in during), default=None)
    print(f"  time    until no more errors: {seconds(last_error and last_error - record.began) if during else '0 s'};"
          f" until it was used again: {seconds(record.used_again())}")
    if record.fault in ("killed", "restarted-empty"):
        told = ", ".join(f"{o.said_cached} (had {o.had_cached})" for o in first_predictions(record))
        print(f"  cached  first predictions after it came back: {told or 'none'}")
    well = True
    for what, holds in bounds(record):
        print(f"  {'holds ' if holds else 'BROKEN'}  {what}")
        well &= holds
    return well


def main(args: argparse.Namespace) -> int:
    names = args.only or [*(REAL if args.model else []), *STAND_IN, *ALL]
    if not args.model and any(name in REAL for name in names):
        raise SystemExit("faults of real engines need --model FILE.gguf")
    well = True
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(args.keep or scratch) / name if args.keep else pathlib.Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                well &= report(play(name, args, folder))
            except RuntimeError as error:
                print(f"\n## {name}\n  BROKEN  {error}", flush=True)
                well = False
    return 0 if well else 1
