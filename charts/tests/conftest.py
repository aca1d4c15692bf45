"""Rendering the charts with real Helm binaries.

Helm 4 and 3 come from the cache where `make k8s` builds them, or from HELM4 and HELM3. Without them the
tests are skipped and say so; in CI that is a failure.
"""

import os
import pathlib
import shutil
import subprocess
from typing import NoReturn

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"
# Where `make k8s` builds, as e2e/k8s/driver/binaries.py says.
K8S = pathlib.Path(os.environ.get("STRATA_K8S_CACHE") or pathlib.Path.home() / ".cache/strata/k8s")
# Helm built by hand says it is Kubernetes 1.20, which the charts refuse.
KUBE_VERSION = "1.36.0"


def binary(name: str, variable: str) -> str | None:
    """The path of a tool of the test cluster, or None."""
    named = os.environ.get(variable)
    if named:
        return named
    cached = K8S / "bin" / name
    return str(cached) if cached.exists() else shutil.which(name)


def need(name: str, variable: str) -> str:
    """The path of a tool; without it the test is skipped, and in CI fails."""
    return binary(name, variable) or unavailable(f"{name} is not built; run `make k8s` once, or set {variable}")


def unavailable(why: str) -> NoReturn:
    """Skips a test that lacks something; in CI that is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"skipped: {why}")


class Refused(Exception):
    """Helm did not render; the text is its standard error."""


class Helm:
    """One Helm binary."""

    def __init__(self, path: str):
        self.path = path

    def run(self, *args: str) -> str:
        done = subprocess.run([self.path, *args], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Refused(done.stderr + done.stdout)
        return done.stdout

    def template(self, chart: str | pathlib.Path, values: dict | None = None, *args: str, namespace="strata") -> str:
        """The chart's YAML for a set of values."""
        path = CHARTS / chart
        command = [self.path, "template", "strata", str(path), "--namespace", namespace]
        command += ["--kube-version", KUBE_VERSION, "--values", "-", *args]
        done = subprocess.run(
            command, input=yaml.safe_dump(values or {}), capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise Refused(done.stderr)
        return done.stdout

    def objects(self, chart: str | pathlib.Path, values: dict | None = None, *args: str, namespace="strata") -> list[dict]:
        """The same, parsed."""
        return [o for o in yaml.safe_load_all(self.template(chart, values, *args, namespace=namespace)) if o]


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(need("helm4", "HELM4"))


@pytest.fixture(scope="session")
def helm3() -> Helm:
    return Helm(need("helm3", "HELM3"))


@pytest.fixture(params=["helm4", "helm3"])
def each_helm(request) -> Helm:
    return Helm(need(request.param, request.param.upper()))


@pytest.fixture(scope="session")
def kubeconform(tmp_path_factory):
    """Checks YAML against the API server's schemas, strictly; returns what does not fit."""
    import schemas  # Which takes this file's names.

    program = need("kubeconform", "KUBECONFORM")
    need("kube-apiserver", "KUBE_APISERVER")
    known = schemas.kubernetes()
    ours = tmp_path_factory.mktemp("schemas")
    schemas.write(ours, schemas.of_files(sorted((ROOT / "crds").glob("*.yaml"))))
    schemas.write(ours, schemas.of_files(sorted((K8S / "crds").rglob("*.yaml"))))

    def check(text: str, skip: str = "") -> str:
        command = [program, "-strict", "-summary", "-skip", skip]
        for folder in (known, ours):
            command += ["-schema-location", f"{folder}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"]
        done = subprocess.run([*command, "-"], input=text, capture_output=True, text=True, timeout=120)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return check


def cases() -> list[pathlib.Path]:
    """The sets of values that are rendered: one file each."""
    return sorted((CHARTS / "tests/cases").glob("*.yaml"))


@pytest.fixture(params=cases(), ids=lambda path: path.stem)
def case(request) -> pathlib.Path:
    return request.param


def values_of(case: pathlib.Path) -> dict:
    return yaml.safe_load(case.read_text()) or {}


def arguments_of(case: pathlib.Path) -> list[str]:
    """Arguments for Helm, from the case's first line `# helm: …`."""
    first = case.read_text().split("\n", 1)[0]
    return first.removeprefix("# helm:").split() if first.startswith("# helm:") else []


def rendered_by_operator() -> list[tuple[str, dict]]:
    """Every Kubernetes object that the operator's tests keep as rendered, with the name of what holds it."""
    found = []
    for path in sorted((ROOT / "operator/src").rglob("*.snap")):
        # A header of insta, then what was rendered: YAML or JSON, an object, several, or a list.
        body = path.read_text().split("\n---\n", 1)[-1]
        try:
            documents = list(yaml.safe_load_all(body))
        except yaml.YAMLError:
            continue
        for document in documents:
            for candidate in document if isinstance(document, list) else [document]:
                if isinstance(candidate, dict) and {"apiVersion", "kind", "metadata"} <= candidate.keys():
                    found.append((path.name.removesuffix(".snap"), candidate))
    # All that is applied in one situation, as it is applied: one file each.
    for path in sorted((ROOT / "operator/tests/cluster/rendered").glob("*.yaml")):
        found += [(path.stem, document) for document in yaml.safe_load_all(path.read_text())]
    return found
