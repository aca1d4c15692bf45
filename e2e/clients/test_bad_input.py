"""Bad input of each kind: the command fails at once, and says what, where and what to do."""

import http.client
import json
import pathlib
import socket
import subprocess
import urllib.parse

import pytest
import yaml
from strata import MODEL, model, tenant


def engine(strata, uri: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [strata, "engine", "--model", uri, "--listen", "127.0.0.1:0", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def up(strata, tmp_path, text: str, *args: str) -> subprocess.CompletedProcess:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "all.yaml").write_text(text)
    listen = () if "--listen" in args else ("--listen", "127.0.0.1:0")
    return subprocess.run(
        [strata, "up", "-f", folder, "--state", tmp_path / "state", *listen, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_truncated_model(strata, uri, tmp_path):
    whole = pathlib.Path(uri.removeprefix("file://")).read_bytes()
    for length in (3, 1000, len(whole) // 2):
        path = tmp_path / f"cut-{length}.gguf"
        path.write_bytes(whole[:length])
        out = engine(strata, f"file://{path}")
        assert out.returncode != 0 and path.name in out.stderr, out.stderr
        assert "truncated" in out.stderr or "not a GGUF" in out.stderr, out.stderr
        assert "panicked" not in out.stderr


def test_an_unknown_architecture(strata, uri, tmp_path):
    whole = pathlib.Path(uri.removeprefix("file://")).read_bytes()
    name = b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama"
    assert name in whole
    path = tmp_path / "other.gguf"
    path.write_bytes(whole.replace(name, name[:-5] + b"zebra", 1))
    out = engine(strata, f"file://{path}")
    assert out.returncode != 0 and "zebra" in out.stderr and "llama" in out.stderr, out.stderr


def test_a_model_that_is_not_there(strata):
    out = engine(strata, "file:///nowhere/model.gguf")
    assert out.returncode != 0 and "/nowhere/model.gguf" in out.stderr


def test_a_port_in_use(strata, uri):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        out = subprocess.run(
            [strata, "engine", "--model", uri, "--listen", address],
            capture_output=True, text=True, timeout=60, check=False,
        )
    assert out.returncode != 0 and address in out.stderr and "--listen" in out.stderr, out.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["spec"].update(replica=2), ["all.yaml", "spec.replica", "replicas"]),
        (lambda m: m["spec"].update(replicas="two"), ["all.yaml", "spec.replicas", "integer"]),
        (lambda m: m["spec"].pop("model"), ["all.yaml", "spec.model"]),
        (lambda m: m["spec"]["model"].update(uri="ftp://x/y"), ["all.yaml", "uri"]),
        (lambda m: m["spec"].update(autoscaling={"min": 1, "max": 2}), ["all.yaml", "autoscaling"]),
        (lambda m: m.update(kind="ModelDeploymant"), ["all.yaml", "ModelDeployment"]),
    ],
)
def test_a_wrong_manifest(strata, uri, tmp_path, change, says):
    thing = model(MODEL, uri)
    change(thing)
    out = up(strata, tmp_path, yaml.safe_dump(thing))
    assert out.returncode != 0
    for word in says:
        assert word in out.stderr, out.stderr
    assert "panicked" not in out.stderr


def test_yaml_that_is_no_yaml(strata, tmp_path):
    out = up(strata, tmp_path, "kind: [unclosed\n")
    assert out.returncode != 0 and "all.yaml:" in out.stderr


def test_an_empty_folder_and_one_that_is_not_there(strata, tmp_path):
    out = up(strata, tmp_path, "")
    assert out.returncode != 0 and "ModelDeployment" in out.stderr
    missing = subprocess.run(
        [strata, "up", "-f", tmp_path / "nowhere", "--state", tmp_path / "s2"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert missing.returncode != 0 and "nowhere" in missing.stderr


def test_no_tenants_means_no_listening_beyond_loopback(strata, uri, tmp_path):
    out = up(strata, tmp_path, yaml.safe_dump(model(MODEL, uri)), "--listen", "0.0.0.0:0")
    assert out.returncode != 0 and "--insecure-no-auth" in out.stderr


def test_development_mode_takes_one_replica(strata, uri, tmp_path):
    out = up(strata, tmp_path, yaml.safe_dump(model(MODEL, uri, replicas=2)), "--mode", "development")
    assert out.returncode != 0 and "production" in out.stderr


def raw(up, body: bytes, length: int | None = None) -> tuple[int, dict]:
    url = urllib.parse.urlsplit(up.base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    headers = {"content-type": "application/json", "authorization": f"Bearer {up.key('rich')}"}
    if length is not None:
        headers["content-length"] = str(length)
    try:
        connection.request("POST", url.path + "/chat/completions", body, headers)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before the whole body was sent; the answer is there to read
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_malformed_json(up):
    status, body = raw(up, b'{"model": "smollm2-135m", "messages": [')
    assert status == 400 and "JSON" in body["error"]["message"]


def test_a_key_twice(up):
    status, body = raw(up, b'{"model":"a","mod\\u0065l":"b","messages":[]}')
    assert status == 400 and "model" in body["error"]["message"]


def test_fifty_megabytes(up):
    status, body = raw(up, b'{"model":"' + b"x" * 50_000_000 + b'"}')
    assert status == 413 and "32 MiB" in body["error"]["message"]


def test_text_that_is_not_utf8(up):
    status, body = raw(up, b'{"model":"smollm2-135m","messages":[{"role":"user","content":"\xff\xfe"}]}')
    assert status == 400 and body["error"]["type"] == "invalid_request_error"
