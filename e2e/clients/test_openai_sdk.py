"""The OpenAI Python SDK against `strata up`: what applications do, and the typed error of each refusal."""

import time

import openai
import pytest
from strata import MODEL, wait_for

HELLO = [{"role": "user", "content": "Say hello."}]


def test_chat(up):
    answer = up.client("rich").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16, temperature=0)
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert "ello" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_streamed_is_the_same_text_with_usage_last(up):
    client = up.client("rich")
    question = dict(model=MODEL, messages=HELLO, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**question)
    chunks = list(client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stream_without_include_usage_carries_none(up):
    chunks = list(up.client("rich").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


def test_completions(up):
    client = up.client("rich")
    ask = dict(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    whole = client.completions.create(**ask)
    assert "Paris" in whole.choices[0].text
    streamed = "".join(c.choices[0].text for c in client.completions.create(**ask, stream=True) if c.choices)
    assert streamed == whole.choices[0].text


def test_sampling_is_repeatable_by_seed_and_n_gives_n(up):
    client = up.client("rich")
    ask = dict(model=MODEL, messages=HELLO, max_tokens=12, temperature=1.0, seed=7, n=3)
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert len(texts) == 3 and texts == [c.message.content for c in second.choices]
    assert len(set(texts)) > 1


def test_logprobs_and_stop(up):
    client = up.client("rich")
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 3 for t in content)
    assert content[0].token == content[0].top_logprobs[0].token
    stopped = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", max_tokens=32, temperature=0, stop=["8"])
    assert "8" not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop"


def test_models(up):
    assert [m.id for m in up.client("rich").models.list()] == [MODEL]
    assert up.client("rich").models.retrieve(MODEL).id == MODEL
    assert list(up.client("narrow").models.list()) == []


def test_responses(up):
    client = up.client("rich")
    first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=24, temperature=0)
    assert first.output_text and first.usage.output_tokens > 0
    second = client.responses.create(
        model=MODEL, input="What is my name?", previous_response_id=first.id, max_output_tokens=24, temperature=0
    )
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert [i.role for i in client.responses.input_items.list(second.id)] != []
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_responses_streamed(up):
    events = list(
        up.client("rich").responses.create(
            model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0, stream=True
        )
    )
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text and text == events[-1].response.output_text


def test_conversations_keep_their_items(up):
    client = up.client("rich")
    conversation = client.conversations.create(metadata={"topic": "test"})
    client.responses.create(model=MODEL, input="Say hello.", conversation=conversation.id, max_output_tokens=8)
    items = list(client.conversations.items.list(conversation.id))
    assert {i.role for i in items if i.type == "message"} == {"user", "assistant"}


def test_one_tenants_responses_are_invisible_to_another(up):
    mine = up.client("rich").responses.create(model=MODEL, input="secret", max_output_tokens=4)
    with pytest.raises(openai.NotFoundError):
        up.client("broke").responses.retrieve(mine.id)


def test_a_bad_key(up):
    for key in ("sk-strata-wrong_key", "nonsense"):
        with pytest.raises(openai.AuthenticationError) as failure:
            up.client(key=key).chat.completions.create(model=MODEL, messages=HELLO)
        assert failure.value.code == "invalid_api_key"
        assert key not in failure.value.message


def test_a_forbidden_model_looks_like_one_that_does_not_exist(up):
    def refusal(model):
        with pytest.raises(openai.NotFoundError) as failure:
            up.client("narrow").chat.completions.create(model=model, messages=HELLO)
        return failure.value

    forbidden, missing = refusal(MODEL), refusal("no-such-model")
    assert forbidden.code == missing.code == "model_not_found"
    assert forbidden.message.replace(MODEL, "X") == missing.message.replace("no-such-model", "X")


def test_an_exhausted_budget(up):
    client = up.client("broke")
    with pytest.raises(openai.RateLimitError) as failure:
        for _ in range(40):
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=32)
    assert failure.value.code == "insufficient_quota"


def test_a_full_window_says_when_to_come_back_and_means_it(up):
    client = up.client("hasty")
    with pytest.raises(openai.RateLimitError) as failure:
        for _ in range(5):
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    headers = failure.value.response.headers
    assert failure.value.code == "rate_limit_exceeded"
    assert headers["x-ratelimit-limit-requests"] == "2" and headers["x-ratelimit-remaining-requests"] == "0"
    back = time.monotonic() + float(headers["retry-after"])
    wait_for("the time that retry-after names", lambda: time.monotonic() >= back, 10)
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 20000}]}, "context"),
    ],
)
def test_bad_requests_name_what_is_wrong(up, change, says):
    with pytest.raises(openai.BadRequestError) as failure:
        up.client("rich").chat.completions.create(**{"model": MODEL, "messages": HELLO, **change})
    assert says in failure.value.message


def test_internal_headers_stay_inside(up):
    raw = up.client("rich").chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1)
    inside = [n for n in raw.headers if n.startswith(("x-strata-", "x-gateway-"))]
    assert set(inside) <= {"x-strata-decision", "x-strata-replica"}, "only the decision, and only on loopback"
    assert raw.headers["x-request-id"]
