"""Applications before a real Envoy, which asks the scheduler over gRPC where each request should go.

Envoy's configuration is the one in examples/envoy, with other ports and other body modes. Needs
`--envoy`, a path; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import copy
import json
import pathlib
import socket
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
        def ask():
            for name, log, process in self.running:
                assert process.poll() is None, f"{name} stopped:\n{log.read_text()[-3000:]}"
            try:
                return call(url, timeout=5)[0] == status
            except OSError:
                return False

        wait_for(f"{url} to answer {status}", ask)

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
    if envoy is None:
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
        wait_for(
            "both replicas to be ready",
            lambda: _ready_replicas(processes, scheduler) == 2,
        )
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


def _ready_replicas(processes: Processes, scheduler: str) -> int:
    processes.answers(f"{scheduler}/health")
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
