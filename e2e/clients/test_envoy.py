"""Applications before a real Envoy, which asks the scheduler over gRPC where each request should go.

Envoy's configuration is the one in examples/envoy, with other ports and other body modes. Needs
`--envoy`, a path; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import copy
import json
import pathlib
import os
import random
import socket
import ssl
import subprocess
import urllib.error
import urllib.request

import openai
import pytest
import yaml
from strata import wait_for

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "envoy" / "envoy.yaml"
MODES = ("BUFFERED", "BUFFERED_PARTIAL", "STREAMED", "FULL_DUPLEX_STREAMED")
HELLO = [{"role": "user", "content": "Say hello."}]


# Below those that the kernel gives to clients, so that no connection takes one before its server does.
PORTS = random.Random().sample(range(20_000, 32_000), 2_000)


def free_port() -> int:
    """A port of loopback that nobody listens on, never the same twice."""
    while PORTS:
        port = PORTS.pop()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no port of 2,000 is free")


def call(url: str, body: dict | bytes | None = None, timeout: float = 60) -> tuple[int, dict, bytes]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


class Processes:
    """Started one by one, ended together."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.running = folder, []

    def start(self, name: str, *command, env: dict | None = None) -> pathlib.Path:
        log = self.folder / f"{name}.log"
        with log.open("w") as out:
            self.running.append((name, log, subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=env)))
        return log

    def answers(self, url: str, status: int = 200):
        self.until(f"{url} to answer {status}", lambda: call(url, timeout=5)[0] == status)

    def until(self, what: str, holds):
        """Waits, and fails at once when one of the processes has stopped."""

        def ask():
            for name, log, process in self.running:
                assert process.poll() is None, f"{name} stopped:\n{log.read_text()[-3000:]}"
            try:
                return holds()
            except OSError:
                return False

        wait_for(what, ask)

    def stop(self):
        for _, _, process in self.running:
            process.terminate()
        for _, _, process in self.running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def configured(ports: dict[str, int], picker: int) -> dict:
    """The example, with one listener a mode."""
    config = yaml.safe_load(EXAMPLE.read_text())
    resources = config["static_resources"]
    (example,) = resources["listeners"]
    resources["listeners"] = []
    for mode, port in ports.items():
        listener = copy.deepcopy(example)
        listener["name"] = mode
        listener["address"]["socket_address"]["port_value"] = port
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        filter_ = manager["http_filters"][0]["typed_config"]
        filter_["processing_mode"]["request_body_mode"] = mode
        if mode != "FULL_DUPLEX_STREAMED":
            filter_["processing_mode"]["request_trailer_mode"] = "SKIP"
            # These keep the body in Envoy while a replica is looked for.
            listener["per_connection_buffer_limit_bytes"] = 32 * 1024 * 1024
        if mode == "STREAMED":
            filter_["send_body_without_waiting_for_header_response"] = True
        resources["listeners"].append(listener)
    scheduler = next(cluster for cluster in resources["clusters"] if cluster["name"] == "scheduler")
    endpoint = scheduler["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"]["port_value"] = picker
    return config


@pytest.fixture(scope="module")
def chain(strata, uri, request, tmp_path_factory):
    """Two engines, their scheduler, and Envoy before it: what each listener's base URL is, and what the
    engines are."""
    envoy = request.config.getoption("--envoy")
    if envoy is None or not envoy.is_file():
        pytest.skip("--envoy names no Envoy; `make test` installs one where there is one to install")
    folder = tmp_path_factory.mktemp("envoy")
    processes = Processes(folder)
    try:
        engines = []
        for n in range(2):
            port = free_port()
            model = uri.removeprefix("file://")
            processes.start(
                f"engine-{n}", strata, "engine", "--model", model, "--listen", f"127.0.0.1:{port}", "--threads", "1"
            )
            engines.append(f"http://127.0.0.1:{port}")
        for engine in engines:
            processes.answers(f"{engine}/ready")
        port, picker = free_port(), free_port()
        scheduler = f"http://127.0.0.1:{port}"
        processes.start(
            "scheduler", strata, "scheduler", "--replicas", ",".join(engines),
            "--listen", f"127.0.0.1:{port}", "--extproc-listen", f"127.0.0.1:{picker}",
        )  # fmt: skip
        processes.until("both replicas to be ready", lambda: ready_replicas(scheduler) == 2)
        ports = {mode: free_port() for mode in MODES}
        config = folder / "envoy.json"
        config.write_text(json.dumps(configured(ports, picker)))
        processes.start("envoy", envoy, "--disable-hot-restart", "--concurrency", "1", "--config-path", config)
        urls = {mode: f"http://127.0.0.1:{port}" for mode, port in ports.items()}
        for url in urls.values():
            processes.answers(f"{url}/v1/models")
        yield urls, scheduler, engines
    finally:
        processes.stop()


def ready_replicas(scheduler: str) -> int:
    models = json.loads(call(f"{scheduler}/replicas")[2])["models"]
    return sum(state["ready"] for replicas in models.values() for state in replicas)


def states(scheduler: str) -> list[dict]:
    (replicas,) = json.loads(call(f"{scheduler}/replicas")[2])["models"].values()
    return replicas


@pytest.mark.parametrize("mode", MODES)
def test_the_sdk_is_answered_and_turns_go_where_they_are_cached(chain, mode):
    urls, scheduler, _ = chain
    client = openai.OpenAI(base_url=f"{urls[mode]}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    system = f"You answer in {mode}. " * 40
    before = {state["url"]: state["requests"] for state in states(scheduler)}
    messages = [{"role": "system", "content": system}, *HELLO]
    for turn in range(3):
        chunks = list(
            client.chat.completions.create(
                model=model, messages=messages, max_tokens=8, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
        assert usage.completion_tokens > 0 and said
        if turn:
            assert usage.prompt_tokens_details.cached_tokens > 0, "the replica that has the prompt answers"
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And again?"}]
    took = [state["requests"] - before[state["url"]] for state in states(scheduler)]
    assert sorted(took) == [0, 3], took
    wait_for("nothing to be in flight", lambda: all(state["in_flight"] == 0 for state in states(scheduler)), 20)


@pytest.fixture(scope="module")
def large(chain) -> tuple[dict, int]:
    """A body of more than a megabyte, and what an engine says of it that is asked itself."""
    engine = chain[2][0]
    model = json.loads(call(f"{engine}/v1/models")[2])["data"][0]["id"]
    text = "".join(f"line {n}: hello\n" for n in range(65_000))
    body = {"kv_transfer_params": {"remote_host": "evil"}, "model": model, "prompt": text}
    assert len(json.dumps(body)) > 1_100_000
    return body, json.loads(call(f"{engine}/tokenize", body)[2])["count"]


@pytest.mark.parametrize("mode", MODES)
def test_a_body_of_more_than_a_megabyte_arrives_whole(chain, large, mode):
    body, count = large
    status, _, answer = call(f"{chain[0][mode]}/tokenize", body)
    assert status == 200, answer[:500]
    assert json.loads(answer)["count"] == count


@pytest.mark.parametrize("mode", MODES)
def test_refusals_raise_what_the_sdk_has_for_them(chain, mode):
    client = openai.OpenAI(base_url=f"{chain[0][mode]}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert call(f"{chain[0][mode]}/sleep", {})[0] == 404


def certificate(folder: pathlib.Path, authority: pathlib.Path, identity: str) -> pathlib.Path:
    """A folder as STRATA_HOP_DIR wants it, of a certificate for this identity."""
    own = folder / identity.replace("/", "-")
    own.mkdir()
    names = own / "names"
    names.write_text(f"subjectAltName=URI:spiffe://strata/ns/{identity}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test",
        "-keyout", own / "tls.key", "-out", own / "request",
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", own / "request", "-CA", authority / "ca.crt", "-CAkey", authority / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", names, "-out", own / "tls.crt",
    )  # fmt: skip
    (own / "ca.crt").write_text((authority / "ca.crt").read_text())
    return own


def openssl(*args) -> None:
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_with_certificates_envoy_shows_its_own(chain, strata, request, tmp_path):
    authority = tmp_path / "authority"
    authority.mkdir()
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE",
        "-keyout", authority / "ca.key", "-out", authority / "ca.crt",
    )  # fmt: skip
    own = certificate(tmp_path, authority, "models/scheduler")
    may, may_not = (certificate(tmp_path, authority, who) for who in ("strata/gateway", "models/engine"))
    port, picker = free_port(), free_port()
    ports = {"may": free_port(), "may-not": free_port()}
    processes = Processes(tmp_path)
    try:
        processes.start(
            "scheduler", strata, "scheduler", "--replicas", ",".join(chain[2]),
            "--listen", f"127.0.0.1:{port}", "--extproc-listen", f"127.0.0.1:{picker}",
            env=os.environ | {"STRATA_HOP_DIR": str(own)},
        )  # fmt: skip
        unverified = ssl._create_unverified_context()
        ready = f"https://127.0.0.1:{port}/ready"
        processes.until("a ready replica", lambda: opens(ready, unverified))
        for who, folder in (("may", may), ("may-not", may_not)):
            config = configured({"FULL_DUPLEX_STREAMED": ports[who]}, picker)
            clusters = config["static_resources"]["clusters"]
            next(c for c in clusters if c["name"] == "scheduler")["transport_socket"] = mutual_tls(folder)
            path = tmp_path / f"{who}.json"
            path.write_text(json.dumps(config))
            envoy = request.config.getoption("--envoy")
            processes.start(who, envoy, "--disable-hot-restart", "--concurrency", "1", "--config-path", path)
        processes.answers(f"http://127.0.0.1:{ports['may']}/v1/models")
        body = {"model": "none", "prompt": "hi"}
        refused = call(f"http://127.0.0.1:{ports['may']}/v1/completions", body)
        assert refused[0] == 404 and b"model_not_found" in refused[2]
        # The picker refuses this one; Envoy lets nothing pass that it cannot ask about.
        processes.answers(f"http://127.0.0.1:{ports['may-not']}/v1/models", 500)
    finally:
        processes.stop()


def opens(url: str, context: ssl.SSLContext) -> bool:
    with urllib.request.urlopen(url, timeout=5, context=context) as answer:
        return answer.status == 200


def mutual_tls(folder: pathlib.Path) -> dict:
    """The setting that docs/guides/envoy.md shows."""
    version = "TLSv1_3"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": version, "tls_maximum_protocol_version": version},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(folder / "tls.crt")},
                        "private_key": {"filename": str(folder / "tls.key")},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": str(folder / "ca.crt")},
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": "spiffe://strata/ns/models/scheduler"}}
                    ],
                },
            },
        },
    }
