"""Development, then production, then enterprise, by chart upgrades: nothing that the platform keeps is lost."""

from __future__ import annotations

import openai
import pytest
from install import MODEL, NAMESPACE, model

pytestmark = pytest.mark.pods

NAME = "smol"
UNGOVERNED = {"insecureNoAuth": True, "preStopSeconds": 0, "persistence": {"size": "1Gi"}}


def respond(client: openai.OpenAI, conversation: str, text: str):
    return client.responses.create(model=MODEL, input=text, conversation=conversation, max_output_tokens=8)


def test_the_chart_refuses_a_mode_that_nobody_guards(strata):
    strata.install_crds()
    with pytest.raises(AssertionError, match="insecureNoAuth"):
        strata.install(mode="production")


@pytest.fixture(scope="module")
def kept(kube, strata):
    """Mode development, with a conversation of one response."""
    strata.install(mode="development", platform=UNGOVERNED)
    kube.apply(model(NAME, strata.uri(NAMESPACE)), namespace=NAMESPACE)
    kube.wait_ready(NAMESPACE, NAME)
    client = strata.client()
    answers(kube, client)
    conversation = client.conversations.create(metadata={"made": "in development"})
    response = respond(client, conversation.id, "Say one.")
    assert response.status in ("completed", "incomplete")
    return {"conversation": conversation.id, "responses": [response.id]}


def answers(kube, client: openai.OpenAI) -> None:
    """The new chain forms after the upgrade: schedulers start, and the status that said Ready was of the old one.

    Some answers in a row, for a layer has replicas, and the first of them to be ready is not all."""

    def several() -> bool:
        try:
            for _ in range(8):
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
            return True
        except openai.APIStatusError:
            return False

    kube.wait("answers by the new chain", several, 60)


def has_everything(client: openai.OpenAI, kept: dict) -> None:
    assert client.conversations.retrieve(kept["conversation"]).metadata == {"made": "in development"}
    for ident in kept["responses"]:
        assert client.responses.retrieve(ident).id == ident
    texts = [i for i in client.conversations.items.list(kept["conversation"], limit=100)]
    assert len(texts) == 2 * len(kept["responses"])


def test_development(kube, strata, kept):
    """app → platform → engine: no scheduler, no gateway, one replica."""
    has_everything(strata.client(), kept)
    assert not kube.pods(NAMESPACE, component="scheduler") and not kube.pods(NAMESPACE, component="gateway")


def test_development_refuses_replicas(kube, strata, kept):
    """Decision 7: more than one replica is an error that names production; the one goes on serving."""
    kube.apply(model(NAME, strata.uri(NAMESPACE), 2), namespace=NAMESPACE)
    refused = kube.wait(
        "a refusal", lambda: (c := kube.condition("ModelDeployment", NAMESPACE, NAME)) and c["status"] == "False" and c, 30
    )
    assert "production" in refused["message"]
    kube.apply(model(NAME, strata.uri(NAMESPACE)), namespace=NAMESPACE)
    kube.wait_ready(NAMESPACE, NAME)


def test_production(kube, strata, kept):
    """app → platform → scheduler → engines."""
    strata.install(mode="production", platform=UNGOVERNED)
    client = strata.client()
    has_everything(client, kept)
    answers(kube, client)
    kube.wait_ready(NAMESPACE, NAME)
    kept["responses"].append(respond(client, kept["conversation"], "Say two.").id)
    assert len(kube.pods(NAMESPACE, component="scheduler")) == 2 and not kube.pods(NAMESPACE, component="gateway")


def test_enterprise(kube, strata, kept):
    """app → platform → gateway → scheduler → engines; the objects of before are one tenant's now, and nobody else's."""
    strata.install(enterprise={"localObjectsTenant": "acme"})
    heir, other = (strata.client(key=strata.tenant(name)) for name in ("acme", "other"))

    answers(kube, other)
    answers(kube, heir)
    kube.wait_ready(NAMESPACE, NAME)
    has_everything(heir, kept)
    kept["responses"].append(respond(heir, kept["conversation"], "Say three.").id)
    has_everything(heir, kept)
    for ident in kept["responses"]:
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(ident)
    with pytest.raises(openai.AuthenticationError):
        strata.client().responses.retrieve(kept["responses"][0])
