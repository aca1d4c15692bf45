"""What the other modules stand on, without a cluster: what is skipped, what is removed, what is installed."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import given
import pytest
from install import image_values

HERE = pathlib.Path(__file__).resolve().parent


@pytest.mark.parametrize(
    "reference,repository,tag,digest",
    [
        ("strata:0.1.0", "strata", "0.1.0", ""),
        ("registry:5000/team/strata:1", "registry:5000/team/strata", "1", ""),
        ("registry:5000/strata", "registry:5000/strata", "latest", ""),
        ("example.com/strata@sha256:ab", "example.com/strata", "", "sha256:ab"),
        ("registry:5000/strata:1@sha256:ab", "registry:5000/strata", "1", "sha256:ab"),
    ],
)
def test_images(reference, repository, tag, digest):
    assert image_values(reference) == {"repository": repository, "tag": tag, "digest": digest}


def skipped(marker: str, *arguments: str) -> tuple[int, str]:
    """Runs all tests with a marker; how many were skipped, and what was said. None may do anything else."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(HERE), "-m", marker]
    command += ["--strata", "/nonexistent", "--model", "/nonexistent", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    last = re.search(r"^(\d+) skipped, \d+ deselected in ", ran.stdout, re.MULTILINE)
    assert ran.returncode == 0 and last, ran.stdout + ran.stderr
    return int(last[1]), ran.stdout


def test_a_given_cluster_runs_no_test_of_the_control_plane():
    """No cluster is asked: the file names none."""
    count, said = skipped("control_plane", "--kubeconfig", "/nonexistent")
    assert count > 100 and "the cluster was given" in said


def test_without_containers_no_test_of_pods_begins():
    """Nor does a fixture of its module, which would install Strata and wait for pods in vain."""
    count, said = skipped("pods", "--tier", "control-plane")
    assert count > 20 and "this machine runs no containers" in said


class Cluster:
    """A cluster of names, in the place of kube.Kube."""

    def __init__(self, *paths: str, releases: dict[str, list[str]] | None = None, refuses: str | None = None):
        self.paths, self.releases, self.refuses = paths, releases or {}, refuses
        self.made: list[str] = []
        self.called: list[str] = []

    def find(self, path: str) -> dict | None:
        return {"metadata": {}} if path in self.paths else None

    def helm(self, *args: str) -> str:
        if args[0] == "list":
            return "\n".join(self.releases.get(args[-1], []))
        return self.kubectl(*args)

    def kubectl(self, *args: str) -> str:
        self.called.append(" ".join(args))
        if self.refuses == args[0]:
            raise AssertionError(f"refused: {self.called[-1]}")
        return ""


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/strata",
        "/api/v1/namespaces/models",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tenants.strata.dev",
    ],
)
def test_a_cluster_in_use_is_left_alone(path):
    assert path.rsplit("/", 1)[1] in given.in_use(Cluster(path))
    assert given.in_use(Cluster("/api/v1/namespaces/default")) is None


def test_what_was_made_is_removed():
    cluster = Cluster(releases={"strata": ["strata", "strata-crds"], "second": ["strata"]})
    cluster.made = ["models", "second"]
    given.clean(cluster)
    waits, gone = "--wait --timeout 60s", "--ignore-not-found --timeout=120s"
    assert cluster.called == [
        f"uninstall strata --namespace strata {waits}",
        f"uninstall strata-crds --namespace strata {waits}",
        f"uninstall strata --namespace second {waits}",
        f"delete customresourcedefinitions modeldeployments.strata.dev tenants.strata.dev quotapolicies.strata.dev {gone}",
        f"delete clusterroles,clusterrolebindings -l app.kubernetes.io/part-of=strata {gone}",
        f"delete namespaces strata models second {gone}",
    ]


def test_what_cannot_be_removed_is_said_and_the_rest_goes():
    cluster = Cluster(releases={"strata": ["strata"]}, refuses="uninstall")
    with pytest.raises(AssertionError, match="refused: uninstall strata"):
        given.clean(cluster)
    assert cluster.called[-1].startswith("delete namespaces strata models ")
