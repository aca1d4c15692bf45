#!/usr/bin/env python3
"""Faults of replicas, one at a time, under a steady load: what clients see of them, and for how long.

    run.py faults --strata target/release/strata [--model FILE.gguf] [--only NAME ...]
    run.py churn --strata target/release/strata [--minutes 10] [--replicas 40]
    run.py replica [--port N]          the stand-in replica (replica.py)

Prints one table a fault, or the figures of the churn as JSON. Exits 1 when a bound that README.md states is broken.
"""

import argparse
import sys

import churn
import faults
import replica


def main() -> int:
    if sys.argv[1:2] == ["replica"]:
        return replica.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("faults", help="one fault after the other")
    one.add_argument("--strata", required=True)
    one.add_argument("--model", help="GGUF file for the faults of real engines; without it they are left out")
    one.add_argument("--only", nargs="+", choices=[*faults.REAL, *faults.STAND_IN, *faults.ALL], metavar="NAME")
    one.add_argument("--before", type=float, default=10, help="seconds of load before the fault")
    one.add_argument("--during", type=float, default=15, help="seconds that the fault lasts")
    one.add_argument("--after", type=float, default=20, help="seconds of load after it")
    one.add_argument("--replicas", type=int, default=4, help="stand-ins; real engines are three")
    one.add_argument("--rate", type=float, default=10, help="requests a second to stand-ins")
    one.add_argument("--real-rate", type=float, default=1.5, help="requests a second to real engines")
    one.add_argument("--keep", metavar="FOLDER", help="write the processes' logs here")
    two = commands.add_parser("churn", help="replicas come and go each second")
    two.add_argument("--strata", required=True)
    two.add_argument("--minutes", type=float, default=10)
    two.add_argument("--replicas", type=int, default=40)
    two.add_argument("--rate", type=float, default=20, help="requests a second")
    two.add_argument("--seed", type=int, default=1)
    two.add_argument("--keep", metavar="FOLDER", help="write the processes' logs here")
    args = parser.parse_args()
    return faults.main(args) if args.command == "faults" else churn.main(args)


if __name__ == "__main__":
    sys.exit(main())
