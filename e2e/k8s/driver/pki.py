"""Keys and certificates of a cluster, by the openssl command, valid for a year."""

from __future__ import annotations

import pathlib
import subprocess

from .errors import ClusterError


def _openssl(*args: str) -> None:
    try:
        ran = subprocess.run(["openssl", *args], capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise ClusterError("there is no openssl here: install it with 'apt-get install openssl'") from None
    if ran.returncode != 0:
        raise ClusterError(f"openssl {args[0]} failed: {ran.stderr.strip()[-500:]}")


class Authority:
    """A certificate authority in a folder: NAME.crt and NAME.key."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder = folder
        self.crt, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.crt.exists():
            _key(self.key)
            _openssl("req", "-x509", "-new", "-key", str(self.key), "-days", "365", "-subj", f"/CN={name}", "-out", str(self.crt))

    def issue(self, name: str, subject: str, *names: str) -> tuple[pathlib.Path, pathlib.Path]:
        """A certificate and its key; `names` as openssl has them, such as DNS:localhost and IP:127.0.0.1."""
        crt, key, request = (self.folder / f"{name}.{end}" for end in ("crt", "key", "csr"))
        _key(key)
        extensions = self.folder / f"{name}.ext"
        lines = ["basicConstraints=CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth"]
        extensions.write_text("\n".join(lines + ([f"subjectAltName={','.join(names)}"] if names else [])))
        _openssl("req", "-new", "-key", str(key), "-subj", subject, "-out", str(request))
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.crt), "-CAkey", str(self.key), "-CAcreateserial"),
            *("-days", "365", "-extfile", str(extensions), "-out", str(crt)),
        )
        return crt, key


def _key(path: pathlib.Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path))
