"""What OpenAI's SDK asks of an engine's decoding: structured output, tools, and vLLM's extra members."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading

import openai
import pytest
from schemas import SCHEMAS, check
from strata import MODEL as UP_MODEL

MODEL = "smollm2"


@pytest.fixture(scope="module")
def client(strata, uri):
    process = subprocess.Popen(
        [strata, "engine", "--model", uri, "--served-model-name", MODEL, "--listen", "127.0.0.1:0",
         "--kv-cache-blocks", "1024", "--precision", "exact"],
        stderr=subprocess.PIPE,
        text=True,
    )
    log, base = [], None
    for line in process.stderr:
        log.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if "engine ready" in line and found:
            base = found.group()
            break
    assert base, "the engine stopped before it was ready:\n" + "".join(log)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    process.terminate()
    assert process.wait(30) == 0


def ask(client, text: str = "Tell me about a person.", **more):
    more.setdefault("temperature", 1)
    more.setdefault("max_tokens", 600)
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], **more
    )


def streamed(chunks) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_schemas_at_temperature_one(client, name):
    schema = SCHEMAS[name]
    form = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    answer = ask(client, f"Give me one {name} as JSON.", response_format=form, seed=7, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop", choice.message.content
        check(json.loads(choice.message.content), schema)
    chunks = ask(client, f"Give me one {name} as JSON.", response_format=form, seed=7, stream=True)
    assert streamed(chunks) == answer.choices[0].message.content


def test_json_mode(client):
    answer = ask(client, "Answer in JSON.", response_format={"type": "json_object"}, temperature=0, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.startswith("{")


# The requests of vLLM's own page on structured outputs, in its older and its newer form.
EMAIL = r"[a-z0-9.]{1,20}@\w{6,10}\.com\n"
SQL = """
root ::= select_statement
select_statement ::= "SELECT " column " from " table " where " condition
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "
condition ::= column "= " number
number ::= "1 " | "2 "
"""


@pytest.mark.parametrize("newer", [True, False])
def test_vllms_documented_forms(client, newer):
    def extra(kind, value):
        return {"structured_outputs": {kind: value}} if newer else {f"guided_{kind}": value}

    answer = ask(
        client, "Classify this sentiment: vLLM is wonderful!", extra_body=extra("choice", ["positive", "negative"])
    )
    assert answer.choices[0].message.content in ("positive", "negative")
    answer = ask(
        client,
        "Generate an example email address for Alan Turing, who works in Enigma. End in .com and new line.",
        extra_body={**extra("regex", EMAIL), "stop": ["\n"]},
    )
    assert re.fullmatch(EMAIL.removesuffix(r"\n"), answer.choices[0].message.content)
    answer = ask(client, "Generate an SQL query to show the 'username' and 'email'.", extra_body=extra("grammar", SQL))
    said = answer.choices[0].message.content
    assert re.fullmatch(r"SELECT col_[12]  from table_[12]  where col_[12] = [12] ", said), said
    car = {"type": "object", "properties": {"brand": {"type": "string", "maxLength": 20}, "car_type": {
        "enum": ["sedan", "SUV", "Truck", "Coupe"]}}, "required": ["brand", "car_type"], "additionalProperties": False}
    answer = ask(client, "Generate a JSON with the brand and type of a 90s car.", extra_body=extra("json", car))
    check(json.loads(answer.choices[0].message.content), car)
    completion = client.completions.create(
        model=MODEL, prompt="Sentiment of 'fine':", max_tokens=9, extra_body=extra("choice", ["good", "bad"])
    )
    assert completion.choices[0].text in ("good", "bad")


def test_what_cannot_be_enforced_is_refused(client):
    for extra, param in [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, extra_body=extra)
        assert refused.value.param == param


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "maxLength": 30, "description": "City and state"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_required_tools(client, choice):
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
    more = {"tools": [WEATHER, TIME], "tool_choice": choice, "parallel_tool_calls": False, "seed": 5}
    answer = ask(client, "What's the weather like in San Francisco?", **more).choices[0]
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    (call,) = answer.message.tool_calls
    check(json.loads(call.function.arguments), parameters[call.function.name])
    if choice != "required":
        assert call.function.name == "get_weather"
    deltas = [
        call
        for chunk in ask(client, "What's the weather like in San Francisco?", stream=True, **more)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert deltas[0].function.name == call.function.name and deltas[0].id
    assert len(deltas) > 3, "arguments come piece by piece"
    assert "".join(d.function.arguments or "" for d in deltas) == call.function.arguments


def test_usage_counts_the_prompt_once(client):
    one = ask(client, n=1, max_tokens=5).usage
    three = ask(client, n=3, max_tokens=5).usage
    assert three.prompt_tokens == one.prompt_tokens


def test_sampling_extras(client):
    greedy = ask(client, "What is the capital of France?", temperature=0, max_tokens=20).choices[0].message.content
    assert "Paris" in greedy
    without = ask(
        client, "What is the capital of France?", temperature=0, max_tokens=20, extra_body={"bad_words": ["Paris"]}
    )
    assert "Paris" not in without.choices[0].message.content
    only = client.completions.create(
        model=MODEL, prompt="a", max_tokens=8, temperature=1, extra_body={"allowed_token_ids": [100, 200], "return_token_ids": True}
    )
    assert set(only.choices[0].model_extra["token_ids"]) <= {100, 200}
    stopped = ask(
        client, "What is the capital of France?", temperature=0, stop=[" is"], extra_body={"include_stop_str_in_output": True}
    ).choices[0]
    assert stopped.message.content.endswith(" is") and stopped.model_extra["stop_reason"] == " is"


def test_log_probabilities_of_the_prompt(client):
    text = "The capital of France is Paris."
    echoed = client.completions.create(model=MODEL, prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0)
    logprobs = echoed.choices[0].logprobs
    assert "".join(logprobs.tokens[:-1]) == text and logprobs.token_logprobs[0] is None
    assert all(math.isfinite(p) and p <= 0 for p in logprobs.token_logprobs[1:])
    asked = client.completions.create(
        model=MODEL, prompt=text, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 1}
    )
    places = asked.choices[0].model_extra["prompt_logprobs"]
    assert places[0] is None and len(places) == len(logprobs.tokens) - 1
    best = client.completions.create(model=MODEL, prompt=text, max_tokens=4, seed=3, temperature=1, extra_body={"best_of": 4})
    assert len(best.choices) == 1


def test_the_layers_above_pass_these_members_on(up):
    client = up.client("rich")

    def say(**more):
        return client.chat.completions.create(
            model=UP_MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=200, temperature=1, **more
        ).choices[0]

    assert say(extra_body={"guided_choice": ["yes", "no"]}).message.content in ("yes", "no")
    assert say(extra_body={"structured_outputs": {"regex": "[0-9]{4}"}}).message.content.isdigit()
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMAS["person"]}}
    check(json.loads(say(response_format=form).message.content), SCHEMAS["person"])
    called = say(tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "get_time"}})
    check(json.loads(called.message.tool_calls[0].function.arguments), TIME["function"]["parameters"])
    extras = say(extra_body={"prompt_logprobs": 0, "return_token_ids": True, "stop_token_ids": [2]})
    assert extras.model_extra["token_ids"]
