"""What calls these tests and packages the charts: the Makefile and .ci/run."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT


def run(command: list[str], **env: str) -> str:
    # Of a `make` that runs these tests nothing is handed down.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "CI", "HELM", "STRATA_"))}
    done = subprocess.run(command, cwd=ROOT, env={**kept, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def program(tmp_path):
    """Writes a shell script of this name."""

    def write(name: str, body: str) -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
        return path

    return write


def test_make_takes_helm_from_where_it_was_built(program, tmp_path):
    helm = program("cache/bin/helm4", "")
    shown = run(["make", "--dry-run", "chart"], STRATA_K8S_CACHE=str(tmp_path / "cache"))
    assert f"{helm} package" in shown


def test_these_tests_take_helm_from_there_too(program, tmp_path):
    helm = program("cache/bin/helm4", "")
    ask = "import conftest; print(conftest.need('helm4', 'HELM4'))"
    there = {"STRATA_K8S_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT / "charts/tests")}
    assert run([sys.executable, "-c", ask], **there).strip() == str(helm)


MAKE = """
case "$1" in
test) echo '7 passed in 1.00s'; echo 'test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured'; echo '3 passed, 2 skipped in 2.00s' ;;
e2e) echo '9 passed in 3.00s' ;;
esac
echo "CI=$CI"
"""


@pytest.mark.parametrize("given,taken", [({}, "true"), ({"CI": "yes"}, "yes")])
def test_ci_says_what_each_runner_said(program, given, taken):
    make = program("bin/make", MAKE)
    said = run([".ci/run"], PATH=f"{make.parent}:{os.environ['PATH']}", **given)
    assert said.count(f"CI={taken}\n") == 5, "every stage knows that it is CI's"
    summary = said.split("== summary\n", 1)[1].splitlines()
    assert summary[1:] == [
        "pytest, the charts: 7 passed in 1.00s",
        "pytest, the OpenAI SDK and the running stack: 3 passed, 2 skipped in 2.00s",
        "pytest, a real Kubernetes: 9 passed in 3.00s",
        "cargo: 5 passed, 0 failed, 1 skipped",
    ]
