#!/usr/bin/env python3
"""Make Strata's container image without a container builder and without a registry.

    image.py --strata target/release/strata --out target/strata-image.tar [--tag 0.1.0]

The archive is an OCI layout that `docker load` understands as well. It carries the binary, the shared
libraries of this machine that the binary asks for, CA certificates, and a user that is not root. The
same inputs give the same bytes: times are zero, names sorted, owners fixed. Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent
USER = 65532
REGISTRY = "docker.io/library"
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
ZONES = pathlib.Path("/usr/share/zoneinfo")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PASSWD = f"root:x:0:0:root:/:/sbin/nologin\nstrata:x:{USER}:{USER}:strata:/tmp:/sbin/nologin\n"
GROUP = f"root:x:0:\nstrata:x:{USER}:\n"


class ImageError(Exception):
    pass


@dataclass
class Layer:
    """The files of an image: path in it, without a leading slash -> (mode, content or None for a folder)."""

    entries: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)

    def folder(self, path: str, mode: int = 0o755) -> None:
        for parent in reversed(pathlib.PurePosixPath(path).parents):
            if str(parent) != ".":
                self.entries.setdefault(str(parent), (0o755, None))
        self.entries[path] = (mode, None)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.folder(str(pathlib.PurePosixPath(path).parent))
        self.entries[path] = (mode, content)

    def copy(self, source: pathlib.Path, path: str, mode: int = 0o644) -> None:
        try:
            self.file(path, source.read_bytes(), mode)
        except OSError as error:
            raise ImageError(f"{source} cannot be read for the image: {error.strerror}") from error

    def tar(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path in sorted(self.entries):
                mode, content = self.entries[path]
                info = tarfile.TarInfo(path)
                info.mode, info.mtime = mode, 0
                if content is None:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return out.getvalue()


def libraries(binary: pathlib.Path) -> list[pathlib.Path]:
    """The shared libraries that the binary is linked to, the loader included; none when it is static."""
    ran = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
    if "not a dynamic executable" in ran.stderr + ran.stdout or "statically linked" in ran.stdout:
        return []
    if ran.returncode != 0:
        raise ImageError(f"ldd cannot read {binary}: {ran.stderr.strip()}")
    if missing := re.findall(r"(\S+) => not found", ran.stdout):
        raise ImageError(f"{binary} needs libraries that this machine lacks: {', '.join(missing)}")
    return [pathlib.Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", ran.stdout, re.MULTILINE)]


def strata_layer(binary: pathlib.Path, strip: bool) -> Layer:
    layer = Layer()
    with tempfile.TemporaryDirectory() as folder:
        program = binary
        if strip:
            program = pathlib.Path(folder) / "strata"
            shutil.copyfile(binary, program)
            subprocess.run(["strip", "--strip-all", str(program)], check=True)
        layer.copy(program, "usr/local/bin/strata", 0o755)
    for library in libraries(binary):
        layer.copy(library, str(library).lstrip("/"), 0o755)
        # Debian asks that the licences of its packages go with them.
        package = subprocess.run(["dpkg", "-S", str(library.resolve())], capture_output=True, text=True, check=False)
        if name := package.stdout.split(":")[0]:
            notice = pathlib.Path(f"/usr/share/doc/{name}/copyright")
            if notice.exists():
                layer.copy(notice, f"usr/share/doc/{name}/copyright")
    if not CERTIFICATES.exists():
        raise ImageError(f"{CERTIFICATES} is not there: install it with 'apt-get install ca-certificates'")
    layer.copy(CERTIFICATES, str(CERTIFICATES).lstrip("/"))
    # A tenant's days and months begin in its own time zone.
    if not (ZONES / "tzdata.zi").exists():
        raise ImageError(f"{ZONES} has no time zones: install them with 'apt-get install tzdata'")
    for path in sorted(ZONES.rglob("*")):
        inside = path.relative_to(ZONES)
        if path.is_file() and inside.parts[0] not in ("posix", "right") and path.read_bytes()[:4] == b"TZif":
            layer.copy(path, str(path).lstrip("/"))
    layer.file("etc/passwd", PASSWD.encode())
    layer.file("etc/group", GROUP.encode())
    layer.file("etc/nsswitch.conf", b"hosts: files dns\n")
    layer.folder("tmp", 0o1777)
    return layer


def oci_archive(name: str, layer: Layer, entrypoint: list[str], labels: dict[str, str], ports: list[int]) -> tuple[bytes, str]:
    """The archive of an image `REPOSITORY:TAG` of one layer, and its digest."""
    plain = layer.tar()
    packed = gzip.compress(plain, compresslevel=6, mtime=0)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": f"{USER}:{USER}",
            "Entrypoint": entrypoint,
            "Env": ["PATH=/usr/local/bin"],
            "WorkingDir": "/",
            "ExposedPorts": {f"{port}/tcp": {} for port in ports},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "scripts/image.py"}],
    }
    blobs: dict[str, bytes] = {}

    def blob(media: str, content: bytes) -> dict:
        blobs[_digest(content)] = content
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": _digest(content), "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", _json(config)),
        "layers": [blob("layer.v1.tar+gzip", packed)],
    }
    full = name if name.count("/") else f"{REGISTRY}/{name}"
    entry = blob("manifest.v1+json", _json(manifest))
    entry["annotations"] = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full.split(":")[-1]}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}

    def place(digest: str) -> str:
        return "blobs/" + digest.replace(":", "/")

    archive = Layer()
    archive.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    archive.file("index.json", _json(index))
    # What `docker load` reads; others pass it by.
    docker = {
        "Config": place(manifest["config"]["digest"]),
        "RepoTags": [name],
        "Layers": [place(manifest["layers"][0]["digest"])],
    }
    archive.file("manifest.json", _json([docker]))
    for digest, content in blobs.items():
        archive.file(place(digest), content)
    archive.entries.pop(".", None)
    return archive.tar(), entry["digest"]


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def version() -> str:
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def strata_image(binary: pathlib.Path, out: pathlib.Path, tag: str | None = None, strip: bool = False) -> tuple[str, str]:
    """Writes the archive of `strata:TAG`; gives its name and digest."""
    if not binary.is_file():
        raise ImageError(f"{binary} is not there: build it with 'cargo build --release -p strata-cli'")
    name = f"strata:{tag or version()}"
    labels = {
        "org.opencontainers.image.title": "strata",
        "org.opencontainers.image.version": version(),
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    archive, digest = oci_archive(name, strata_layer(binary, strip), ["/usr/local/bin/strata"], labels, [8000])
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_bytes(archive)
    part.replace(out)
    return name, digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True, help="the binary to put in")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the archive to write")
    parser.add_argument("--tag", help="default: the workspace's version")
    parser.add_argument("--strip", action="store_true", help="drop the binary's symbols (release builds have none)")
    args = parser.parse_args()
    try:
        name, digest = strata_image(args.strata, args.out, args.tag, args.strip)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"image   {name}")
    print(f"digest  {digest}")
    print(f"size    {args.out.stat().st_size / 1e6:.1f} MB ({args.out})")
    print(f"load it with 'docker load -i {args.out}', 'kind load image-archive {args.out}' or 'ctr -n k8s.io images import {args.out}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
