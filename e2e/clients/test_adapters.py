"""LoRA adapters of a ModelDeployment: each asked for by its own name, with rights of its own."""

import json

import openai
import pytest
from lora import write_adapter
from strata import MODEL, Up, model, tenant, wait_for

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def uris(root):
    return {name: f"file://{write_adapter(root / name, seed)}" for seed, name in enumerate(("sql", "fr"))}


@pytest.fixture(scope="module")
def adapted(strata, uri, uris, root):
    """The whole stack, with one adapter beside the model."""
    running = Up(
        strata,
        root / "up",
        [
            model(MODEL, uri, adapters=[{"name": "team/sql", "uri": uris["sql"]}]),
            tenant("all", ["*"]),
            tenant("base", [MODEL]),
            tenant("team", ["team/*"]),
        ],
    )
    yield running
    running.stop()


def answer(client, name: str) -> str:
    made = client.chat.completions.create(model=name, messages=HELLO, max_tokens=16, temperature=0)
    assert made.model == name
    return made.choices[0].message.content


def test_an_adapter_answers_by_its_name_and_otherwise_than_the_model(adapted):
    client = adapted.client("all")
    base, adapter = answer(client, MODEL), answer(client, "team/sql")
    assert "ello" in base and adapter != base
    assert answer(client, "team/sql") == adapter and answer(client, MODEL) == base
    listed = {m.id: getattr(m, "parent", None) for m in client.models.list()}
    assert listed == {MODEL: None, "team/sql": MODEL}
    whole = client.chat.completions.create(model="team/sql", messages=HELLO, max_tokens=16, temperature=0, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in whole if c.choices) == adapter


def test_a_tenant_sees_the_adapters_that_its_models_name(adapted):
    assert [m.id for m in adapted.client("team").models.list()] == ["team/sql"]
    assert [m.id for m in adapted.client("base").models.list()] == [MODEL]
    assert answer(adapted.client("team"), "team/sql")
    for who, name in (("team", MODEL), ("base", "team/sql")):
        with pytest.raises(openai.NotFoundError) as failure:
            answer(adapted.client(who), name)
        assert failure.value.code == "model_not_found"


def test_usage_is_the_adapters_own(adapted):
    adapted.client("team").chat.completions.create(model="team/sql", messages=HELLO, max_tokens=4)
    out = adapted.run("usage", "--tenant", "team", "-o", "json")
    assert out.returncode == 0, out.stderr
    assert {row["model"] for row in json.loads(out.stdout)} == {"team/sql"}


def test_an_edit_brings_another_adapter_without_a_gap(adapted, uri, uris):
    client = adapted.client("all")
    before = answer(client, "team/sql")
    adapters = [{"name": "team/sql", "uri": uris["sql"]}, {"name": "team/fr", "uri": uris["fr"]}]
    adapted.apply(model(MODEL, uri, adapters=adapters))
    # Requests for it wait for a replica that has it, and go to no other.
    wait_for("the new name", lambda: "team/fr" in [m.id for m in client.models.list()])
    french = answer(client, "team/fr")
    assert french not in (before, answer(client, MODEL))
    assert answer(client, "team/sql") == before
    adapted.apply(model(MODEL, uri))
    wait_for("the names to go", lambda: [m.id for m in client.models.list()] == [MODEL])
    with pytest.raises(openai.NotFoundError):
        answer(client, "team/sql")


def test_a_name_that_is_taken_is_refused(strata, uri, uris, tmp_path):
    thing = model(MODEL, uri, adapters=[{"name": MODEL, "uri": uris["sql"]}])
    with pytest.raises(AssertionError, match="an adapter must have another name than the model"):
        Up(strata, tmp_path / "own", [thing])
    younger = model("team/sql", uri)
    younger["metadata"]["name"] = "younger"
    older = model(MODEL, uri, adapters=[{"name": "team/sql", "uri": uris["sql"]}])
    older["metadata"]["name"] = "older"
    with pytest.raises(AssertionError, match="ModelDeployment strata/older serves `team/sql` already"):
        Up(strata, tmp_path / "others", [older, younger])
