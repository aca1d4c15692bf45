"""LoRA adapters on Kubernetes: asked for by their own names, and rolled out like any other change."""

from __future__ import annotations

import importlib.util
import pathlib

import openai
import pytest
from install import MODEL
from serving import MODELS, NAME, Serving

pytestmark = pytest.mark.pods

HELLO = [{"role": "user", "content": "Say hello."}]


def write_adapter(folder: pathlib.Path, seed: int) -> None:
    """As the tests of clients do, and for pods to read."""
    path = pathlib.Path(__file__).resolve().parents[1] / "clients" / "lora.py"
    spec = importlib.util.spec_from_file_location("lora", path)
    lora = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lora)
    lora.write_adapter(folder, seed)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


@pytest.fixture(scope="module")
def serving(kube, strata):
    if not kube.own:
        pytest.skip("adapters are written into a volume of the tests' own cluster")
    made = Serving(kube, strata)
    for seed, name in enumerate(("sql", "fr")):
        write_adapter(kube.own.state / "volumes" / "models" / name, seed)
    return made


def adapters(*names: str) -> list[dict]:
    return [{"name": f"team/{name}", "uri": f"pvc://models/{name}"} for name in names]


def answer(serving, name: str) -> str:
    client = serving.strata.client("strata-gateway", serving.key)
    made = client.chat.completions.create(model=name, messages=HELLO, max_tokens=12, temperature=0)
    assert made.model == name
    return made.choices[0].message.content


def listed(serving) -> dict:
    client = serving.strata.client("strata-gateway", serving.key)
    return {m.id: getattr(m, "parent", None) for m in client.models.list()}


def test_an_adapter_is_rolled_out_and_answers_by_its_name(serving):
    base = answer(serving, MODEL)
    with pytest.raises(openai.NotFoundError):
        answer(serving, "team/sql")
    with serving.load(clients=2) as load:
        serving.more_streams(load, 2)
        serving.apply(adapters=adapters("sql"))
        serving.ready()
        serving.more_streams(load, 2)
    load.assert_whole()
    adapter = answer(serving, "team/sql")
    assert adapter != base and answer(serving, MODEL) == base
    assert listed(serving) == {MODEL: None, "team/sql": MODEL}
    (pod,) = serving.kube.pods(MODELS, component="engine", model=NAME)
    assert pod["metadata"]["annotations"]["strata.dev/adapters"] == "team/sql"


def test_one_that_is_new_is_waited_for(serving):
    """Asked for while only the old replica serves: no 404 of an engine that does not know it."""
    before = answer(serving, "team/sql")
    serving.apply(adapters=adapters("sql", "fr"))
    serving.kube.wait("its name to be known", lambda: "team/fr" in listed(serving), 30)
    french = answer(serving, "team/fr")
    assert french not in (before, answer(serving, MODEL))
    serving.ready()
    assert answer(serving, "team/sql") == before
    serving.apply(adapters=[])
    serving.ready()
    serving.kube.wait("the names to be gone", lambda: listed(serving) == {MODEL: None}, 30)


def test_a_name_that_is_taken_is_refused(serving):
    kube = serving.kube
    said = kube.kubectl(
        *("patch", "-n", MODELS, f"modeldeployments.strata.dev/{NAME}", "--type=merge", "-p"),
        f'{{"spec":{{"adapters":[{{"name":"{MODEL}","uri":"/a"}}]}}}}',
        check=False,
    )
    assert "an adapter must have another name than the model" in said
    other = {
        "apiVersion": "strata.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "other"},
        "spec": {"model": {"name": "other", "uri": serving.uri}, "adapters": [{"name": MODEL, "uri": "/a"}]},
    }
    kube.apply(other, namespace=MODELS)
    refused = kube.wait("the refusal", lambda: (c := kube.condition("ModelDeployment", MODELS, "other")) and c, 30)
    assert refused["reason"] == "NameConflict" and f"serves `{MODEL}` already" in refused["message"], refused
    kube.delete(kube.path("ModelDeployment", MODELS, "other"))
    assert answer(serving, MODEL)
