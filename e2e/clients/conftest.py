import pathlib

import pytest
from strata import MODEL, Up, model, policy, tenant


def pytest_addoption(parser):
    parser.addoption("--strata", type=pathlib.Path, required=True, help="the strata binary")
    parser.addoption("--model", type=pathlib.Path, required=True, help="the GGUF file of SmolLM2-135M-Instruct")
    parser.addoption("--envoy", type=pathlib.Path, help="Envoy's binary, for the tests before one")


@pytest.fixture(scope="session")
def strata(request) -> pathlib.Path:
    return request.config.getoption("--strata").resolve()


@pytest.fixture(scope="session")
def uri(request) -> str:
    return f"file://{request.config.getoption('--model').resolve()}"


@pytest.fixture(scope="session")
def up(strata, uri, tmp_path_factory):
    """The whole stack in enterprise mode: two replicas, tenants with different rights and quotas."""
    running = Up(
        strata,
        tmp_path_factory.mktemp("enterprise"),
        [
            model(MODEL, uri, replicas=2),
            tenant("rich", ["*"]),
            tenant("narrow", ["other-*"]),
            tenant("broke", [MODEL]),
            tenant("hasty", [MODEL]),
            policy(
                "broke-budget",
                selector={"tenants": ["broke"]},
                budget={"tokens": 600, "period": "Month"},
            ),
            policy(
                "hasty-window",
                selector={"tenants": ["hasty"]},
                limits=[{"resource": "Requests", "limit": 2, "window": "5s"}],
            ),
        ],
    )
    yield running
    running.stop()
