"""How each router is started for the benchmark: every flag, and why it is there.

All get four replicas over HTTP that are always there, and what a router has by default is left on, prefix
routing above all: it is what they are for. Changed is only what would refuse or distort the load itself
(a limit on requests under way, a line of log a request), and how soon a router finds its replicas, which
is before anything is measured.
"""

import dataclasses
import os
import pathlib
import shutil

HERE = pathlib.Path(__file__).resolve().parent
# More than any run has under way.
ROOM = "4096"
# A body of 1 MB, with room.
PAYLOAD = str(64 * 1024 * 1024)


@dataclasses.dataclass(frozen=True)
class Router:
    name: str
    # What it is, for the report.
    says: str
    # {port}, {other} (a second free port) and {folder} are filled in when it is started.
    command: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    # Files made in the folder before the start.
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    # Whether it is one of those that choose a replica by the prompt.
    peer: bool = False


def strata(binary: pathlib.Path, urls: list[str]) -> Router:
    command = [
        *(str(binary.resolve()), "scheduler", "--replicas", ",".join(urls)),
        *("--listen", "127.0.0.1:{port}"),
    ]
    # A warning would still be seen; nothing is logged for a request at `info` either.
    return Router("strata", "this one, by prefix and load", command, {"STRATA_LOG": "warn"})


def nginx(urls: list[str]) -> Router:
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx"
    upstreams = "\n".join(f"        server {url.removeprefix('http://')} max_fails=0;" for url in urls)
    text = (HERE / "nginx.conf").read_text().replace("{UPSTREAMS}", upstreams)
    command = [binary, "-p", "{folder}", "-c", "{folder}/nginx.conf"]
    return Router("nginx", "round robin", command, files={"nginx.conf": text})


def smg(peers: pathlib.Path, urls: list[str]) -> Router:
    command = [
        *(str(peers / "smg" / "bin" / "smg"), "launch", "--worker-urls", *urls),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--prometheus-port", "{other}"),  # its default is a fixed port
        *("--policy", "cache_aware"),  # its default, written down: by prefix and load
        *("--max-concurrent-requests", ROOM),  # so that it refuses nothing
        *("--worker-startup-check-interval", "1"),  # seconds; its 30 only delay the start
        *("--log-level", "warn"),  # at its default `info` it writes a line for each request
    ]
    return Router("smg", "cache_aware", command, peer=True)


def sglang(peers: pathlib.Path, urls: list[str]) -> Router:
    command = [
        *(str(peers / "sglang-router" / "bin" / "sglang-router"), "launch", "--worker-urls", *urls),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--prometheus-port", "{other}"),
        *("--policy", "cache_aware"),
        *("--max-concurrent-requests", ROOM),
        *("--worker-startup-check-interval", "1"),
        *("--log-level", "warn"),
    ]
    return Router("sglang-router", "cache_aware", command, peer=True)


def vllm(peers: pathlib.Path, urls: list[str]) -> Router:
    command = [
        *(str(peers / "vllm-router" / "bin" / "vllm-router"), "--worker-urls", *urls),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--prometheus-port", "{other}"),
        *("--policy", "cache_aware"),
        *("--max-concurrent-requests", ROOM),
        *("--max-payload-size", PAYLOAD),
        *("--worker-startup-check-interval", "1"),
        *("--log-level", "warning"),
    ]
    return Router("vllm-router", "cache_aware", command, peer=True)


def all_of(binary: pathlib.Path, peers: pathlib.Path, urls: list[str]) -> list[Router]:
    return [nginx(urls), strata(binary, urls), smg(peers, urls), sglang(peers, urls), vllm(peers, urls)]
