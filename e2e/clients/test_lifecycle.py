"""What `strata up` does while it runs: modes, edits of the folder, a killed replica, keys, status."""

import http.client
import json
import os
import signal
import threading
import urllib.parse

import openai
import pytest
from strata import MODEL, Up, model, tenant, wait_for

HELLO = [{"role": "user", "content": "Say hello."}]
# What the engine says greedily with its defaults: the same in every mode, and on every processor.
HELLO_ANSWER = "Hello! I'm here to help with any kind of creative writing project. What"


def replicas(up) -> dict[str, int]:
    """Ready engine replicas: name and process."""
    return {r["name"]: r["pid"] for r in up.status()["layers"] if r["component"] == "engine" and r["ready"]}


def others(up) -> dict[str, int]:
    return {r["name"]: r["pid"] for r in up.status()["layers"] if r["component"] != "engine"}


class Streams:
    """Clients that stream one answer after the other, and note how each one ended."""

    def __init__(self, up, key: str | None, clients: int = 4, tokens: int = 40):
        self.ended: list[tuple[str, int, bool]] = []  # how, chunks seen, whether the first had come
        self.stopping = threading.Event()
        self.url = urllib.parse.urlsplit(up.base)
        self.headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        self.tokens = tokens
        self.threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def _client(self, n: int) -> None:
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            self.ended.append(self._one(f"Client {n}, question {turn}: count to ten."))

    def _one(self, question: str) -> tuple[str, int, bool]:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces, usage, done = 0, None, False
        try:
            connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)
            connection.request("POST", self.url.path + "/chat/completions", json.dumps(body), self.headers)
            response = connection.getresponse()
            if response.status != 200:
                return (f"status {response.status}: {response.read()[:200]}", 0, False)
            for raw in response:
                line = raw.decode().strip()
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        return (f"error event: {chunk['error']['message']}", pieces, pieces > 0)
                    usage = chunk.get("usage") or usage
                    pieces += len(chunk["choices"])
            connection.close()
        except (OSError, http.client.HTTPException) as failure:
            return (f"broken: {failure!r}", pieces, pieces > 0)
        whole = done and usage is not None and usage["completion_tokens"] == self.tokens
        return ("whole" if whole else f"cut: done={done} usage={usage}", pieces, pieces > 0)

    def wait_for_more(self, count: int) -> None:
        target = len(self.ended) + count
        wait_for(f"{count} more streams", lambda: len(self.ended) >= target, 120)

    def stop(self) -> list[tuple[str, int, bool]]:
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=120)
        return self.ended


@pytest.mark.parametrize("mode", ["development", "production", "enterprise"])
def test_every_mode_answers_the_same_request(strata, uri, tmp_path, mode):
    objects = [model(MODEL, uri)] + ([tenant("acme", ["*"])] if mode == "enterprise" else [])
    up = Up(strata, tmp_path, objects, "--mode", mode)
    try:
        client = up.client("acme" if mode == "enterprise" else None)
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16, temperature=0)
        assert answer.choices[0].message.content == HELLO_ANSWER
        response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0)
        assert response.output_text == HELLO_ANSWER
        layers = {layer["component"] for layer in up.status()["layers"]}
        assert layers == {"platform", "engine"} | {
            "development": set(),
            "production": {"scheduler"},
            "enterprise": {"gateway", "scheduler"},
        }[mode]
    finally:
        up.stop()


def test_scaling_under_load_cuts_no_stream_and_restarts_nothing_else(strata, uri, tmp_path):
    """kthena#1589, aibrix#553: streams are cut when a replica goes away."""
    up = Up(strata, tmp_path, [model(MODEL, uri), tenant("acme", ["*"])])
    try:
        before, one = others(up), replicas(up)
        streams = Streams(up, up.key("acme"))
        streams.wait_for_more(2)
        up.apply(model(MODEL, uri, replicas=3))
        wait_for("three replicas", lambda: len(replicas(up)) == 3)
        assert one.items() <= replicas(up).items(), "the first replica was restarted"
        streams.wait_for_more(6)
        up.apply(model(MODEL, uri, replicas=1))
        wait_for("one replica", lambda: len(replicas(up)) == 1)
        streams.wait_for_more(4)
        ended = streams.stop()
        assert [e for e in ended if e[0] != "whole"] == []
        assert others(up) == before
        assert replicas(up).items() <= one.items()
    finally:
        up.stop()


def test_a_killed_replica_fails_no_request_that_had_not_begun(strata, uri, tmp_path):
    up = Up(strata, tmp_path, [model(MODEL, uri, replicas=2), tenant("acme", ["*"])])
    try:
        streams = Streams(up, up.key("acme"))
        streams.wait_for_more(4)
        name, pid = next(iter(replicas(up).items()))
        os.kill(pid, signal.SIGKILL)
        wait_for("the replica to be back", lambda: replicas(up).get(name, pid) != pid)
        streams.wait_for_more(4)
        ended = streams.stop()
        assert [e for e in ended if e[0] != "whole" and not e[2]] == []
    finally:
        up.stop()


def test_a_new_tenant_a_changed_right_and_a_deleted_tenant_take_effect(up, strata):
    newcomer = tenant("newcomer", ["other"])
    pids = others(up)
    up.apply(newcomer)
    client = up.client("newcomer")

    def refused(error):
        try:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        except error:
            return True
        except openai.APIStatusError:
            return False
        return False

    wait_for("the key to be known", lambda: refused(openai.NotFoundError))
    up.apply(tenant("newcomer", [MODEL]))
    wait_for("the model to be allowed", lambda: not refused(openai.NotFoundError))
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    up.delete(newcomer)
    wait_for("the tenant to be gone", lambda: refused(openai.AuthenticationError))
    assert others(up) == pids


def test_a_broken_edit_keeps_what_runs_and_says_so(up):
    bad = up.folder / "broken.yaml"
    bad.write_text("apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {name: x}\nspec: {modles: []}\n")
    try:
        wait_for("the problem in the log", lambda: any("modles" in line for line in list(up.log)), 20)
        up.client("rich").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    finally:
        bad.unlink()


def test_keys_are_made_listed_used_and_revoked(up):
    made = up.run("keys", "create", "--tenant", "rich", "--name", "ci", "-o", "json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    client = up.client(key=key["key"])
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    listed = up.run("keys", "list", "--tenant", "rich", "-o", "json")
    assert key["id"] in [k["id"] for k in json.loads(listed.stdout)]
    assert key["key"] not in listed.stdout
    assert up.run("keys", "revoke", key["id"]).returncode == 0

    def refused():
        try:
            client.models.list()
        except openai.AuthenticationError:
            return True
        return False

    wait_for("the revocation", refused, 2)
    assert key["key"] not in "".join(up.log)
    for log in (up.state / "logs").iterdir():
        assert key["key"].split("_")[1] not in log.read_text(errors="replace")


def test_usage_is_reported(up):
    up.client("rich").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
    out = up.run("usage", "-o", "json")
    assert out.returncode == 0, out.stderr
    rows = [r for r in json.loads(out.stdout) if r["tenant"] == "rich" and r["model"] == MODEL]
    assert sum(r["completion_tokens"] for r in rows) >= 1 and sum(r["requests"] for r in rows) >= 1


def test_status_shows_layers_conditions_and_hit_rates(up):
    text = up.run("status")
    assert text.returncode == 0 and MODEL in text.stdout and "Ready" in text.stdout
    status = up.status()
    assert {layer["component"] for layer in status["layers"]} == {"platform", "gateway", "scheduler", "engine"}
    model_object = next(o for o in status["objects"] if o["kind"] == "ModelDeployment")
    assert any(c["type"] == "Ready" and c["status"] == "True" for c in model_object["conditions"])


def test_a_second_up_on_the_same_state_says_so(up):
    second = up.run("up", "-f", str(up.folder), "--listen", "127.0.0.1:0")
    assert second.returncode != 0 and "already" in second.stderr
