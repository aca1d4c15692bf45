"""Fixtures of the tests on a real Kubernetes: a cluster for each module, the image, an installation.

    pytest e2e/k8s --strata target/release/strata --model SmolLM2-135M-Instruct.Q4_1.gguf

Each module gets a cluster of its own, which takes six seconds. With --kubeconfig all use that one, and
each removes at its end what it made: STRATA_IMAGE then names an image that it can pull, and
STRATA_MODEL_URI a model that its pods can fetch.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cluster as clusters  # noqa: E402
import given as given_cluster  # noqa: E402
import image as images  # noqa: E402
from driver import volumes  # noqa: E402
from install import Strata  # noqa: E402
from kube import Kube  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--strata", type=pathlib.Path, required=True, help="the strata binary")
    parser.addoption("--model", type=pathlib.Path, required=True, help="the GGUF file of SmolLM2-135M-Instruct")
    parser.addoption("--archive", type=pathlib.Path, help="the image, made before; else it is made of --strata")
    parser.addoption("--tier", choices=["auto", "node", "control-plane"], default="auto")
    parser.addoption("--kubeconfig", type=pathlib.Path, help="use this cluster, and start none")
    parser.addoption("--keep", action="store_true", help="leave the clusters of failed modules running, or what they made in one that was given")


def pytest_configure(config):
    config.addinivalue_line("markers", "control_plane: needs no running pod; the module gets a control plane alone, and is skipped where a cluster was given")
    config.addinivalue_line("markers", "pods: needs running pods; skipped where the machine runs no containers")
    config.addinivalue_line("markers", "nodes(count): the module's cluster has so many nodes")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    kube = getattr(item, "funcargs", {}).get("kube")
    if report.failed and kube is not None:
        item.session.stash.setdefault(FAILED, set()).add(item.module.__name__)
        try:
            report.sections.append(("the cluster", kube.dump()))
        except Exception as error:  # The test's own failure matters more than that of its report.
            report.sections.append(("the cluster", f"could not be looked at: {error}"))


FAILED = pytest.StashKey[set]()


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(NOTES, []):
        terminalreporter.write_line(line)


NOTES = pytest.StashKey[list]()


def note(config, line: str) -> None:
    """Says something in the closing lines, such as a measurement or on which tier the tests ran."""
    config.stash.setdefault(NOTES, []).append(line)


@contextlib.contextmanager
def measured(config, what: str):
    """Says in the closing lines how long something took."""
    began = time.monotonic()
    yield
    note(config, f"measured {what}: {time.monotonic() - began:.1f} s")


@pytest.fixture(scope="session")
def strata_binary(request) -> pathlib.Path:
    return request.config.getoption("--strata").resolve()


@pytest.fixture(scope="session")
def archive(request, strata_binary, tmp_path_factory) -> pathlib.Path:
    """The image, as an archive to load into nodes."""
    given = request.config.getoption("--archive")
    if given:
        return given.resolve()
    out = tmp_path_factory.mktemp("image") / "strata.tar"
    images.strata_image(strata_binary, out, strip=True)
    return out


def _marker(request, name: str):
    marks = getattr(request.module, "pytestmark", [])
    return next((m for m in (marks if isinstance(marks, list) else [marks]) if m.name == name), None)


def _may_keep(request) -> bool:
    """Whether what a failed module leaves is to be looked at."""
    failed = request.module.__name__ in request.session.stash.get(FAILED, set())
    return failed and request.config.getoption("--keep")


@pytest.fixture(scope="module")
def kube(request):
    """The module's cluster."""
    given = request.config.getoption("--kubeconfig")
    if given:
        note_once(request.config, f"kubernetes: the cluster of {given}")
        kube = Kube(given.resolve())
        try:
            if found := given_cluster.in_use(kube):
                pytest.fail(found, pytrace=False)
            yield kube
            if _may_keep(request):
                note(request.config, f"kept: what {request.module.__name__} made in the cluster of {given}; remove it before the next run")
            else:
                given_cluster.clean(kube)
        finally:
            kube.close()
        return
    name = re.sub(r"[^a-z0-9]+", "-", request.module.__name__.removeprefix("test_"))[:20]
    own = clusters.Cluster(f"{name}-{os.getpid()}")
    wanted = "control-plane" if _marker(request, "control_plane") else _tier(request.config)
    nodes = _marker(request, "nodes")
    began = time.monotonic()
    own.up(wanted, nodes.args[0] if nodes else 1, ends_with_owner=True)
    note_once(request.config, f"kubernetes: {own.tier} tier")
    note(request.config, f"cluster of {request.module.__name__}: {own.tier}, ready in {time.monotonic() - began:.1f} s")
    kube = Kube(own.kubeconfig, own)
    try:
        yield kube
    finally:
        kube.close()
        if _may_keep(request):
            own.keep()
            note(request.config, f"kept: export KUBECONFIG={own.kubeconfig}; end it with cluster.py down --name {own.name}")
        else:
            own.down()


@pytest.fixture(scope="session", autouse=True)
def _sweep(request):
    for name in clusters.sweep():
        note(request.config, f"ended the cluster {name}, whose tests died before they could")


def note_once(config, line: str) -> None:
    if line not in config.stash.setdefault(NOTES, []):
        note(config, line)


TIER = pytest.StashKey[str]()


def _tier(config) -> str:
    """What this machine can run: `node`, or `control-plane` alone."""
    if TIER not in config.stash:
        config.stash[TIER] = clusters.choose_tier(config.getoption("--tier"))
    return config.stash[TIER]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips before any fixture of the module installs something for a test that cannot run."""
    given = item.config.getoption("--kubeconfig")
    if given and item.get_closest_marker("control_plane"):
        pytest.skip("the cluster was given: this test wants a control plane of its own, on this machine")
    if not given and item.get_closest_marker("pods") and _tier(item.config) != "node":
        pytest.skip("this machine runs no containers")


@pytest.fixture(scope="module")
def strata(request, kube) -> Strata:
    """Strata's charts, to be installed in the module's cluster; models come from the claim `models`."""
    if kube.own:
        if kube.own.tier == "node":
            kube.own.load(request.getfixturevalue("archive"))
        volumes.free_volumes(kube.own)
    return Strata(kube, request.config.getoption("--model"))
