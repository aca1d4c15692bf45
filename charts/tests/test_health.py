"""How Argo CD and kstatus (Flux, Helm 4 --wait) judge Strata's objects: alike, and right.

The objects are those of objects.yaml, and those that e2e recorded on a real cluster (recorded/*.yaml).
"""

import copy

import kstatus
import lupa
import pytest
import yaml
from conftest import CHARTS, ROOT

ARGO_OF = {"Terminating": "Progressing", "InProgress": "Progressing", "Failed": "Degraded", "Current": "Healthy"}
SETTINGS = yaml.safe_load((ROOT / "examples/argocd/argocd-cm.yaml").read_text())["data"]


def situations() -> list[dict]:
    found = []
    for path in [CHARTS / "tests/objects.yaml", *sorted((CHARTS / "tests/recorded").glob("*.yaml"))]:
        found += yaml.safe_load(path.read_text())
    return found


def script(kind: str) -> str:
    return SETTINGS[f"resource.customizations.health.{kind}"]


def health(lua_text: str, obj: dict) -> dict:
    """What a health script answers, in an interpreter without libraries, as in Argo CD."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    for name in ("os", "io", "package", "debug", "require", "dofile", "loadfile", "print", "python"):
        lua.globals()[name] = None
    lua.globals().obj = lua.table_from(obj, recursive=True)
    answer = lua.execute(lua_text)
    return {"status": answer.status, "message": answer.message}


def stored(obj: dict) -> dict:
    """The object as the API server stores it: with the status that the definition puts there."""
    out = copy.deepcopy(obj)
    for path in (ROOT / "crds").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        if definition["names"]["kind"] == obj["kind"]:
            status = definition["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
            out.setdefault("status", status["default"])
            return out
    raise AssertionError(f"no definition of {obj['kind']}")


@pytest.mark.parametrize("seen", situations(), ids=lambda s: s["situation"])
def test_argo_cd(seen):
    answer = health(script(f"strata.dev_{seen['object']['kind']}"), seen["object"])
    assert answer["status"] == seen["health"]
    assert answer["message"]


@pytest.mark.parametrize("seen", situations(), ids=lambda s: s["situation"])
def test_argo_cd_and_kstatus_agree(seen):
    obj = stored(seen["object"])
    answer = health(script(f"strata.dev_{obj['kind']}"), obj)
    assert answer["status"] == ARGO_OF[kstatus.status(obj)]


@pytest.mark.parametrize("seen", situations(), ids=lambda s: s["situation"])
def test_what_is_not_ready_says_whether_time_will_do(seen):
    """kstatus knows no condition Enforced: Reconciling or Stalled must stand beside what is not true."""
    obj = seen["object"]
    conditions = {c["type"]: c["status"] for c in obj.get("status", {}).get("conditions", [])}
    main = conditions.get("Enforced" if obj["kind"] == "QuotaPolicy" else "Ready")
    beside = [kind for kind in ("Reconciling", "Stalled") if conditions.get(kind) == "True"]
    if main is not None:
        assert len(beside) == (0 if main == "True" else 1)


def test_messages_say_why():
    obj = next(s["object"] for s in situations() if s["situation"] == "a revision that does not load")
    assert health(script("strata.dev_ModelDeployment"), obj)["message"] == "Failing: the file is no GGUF"


@pytest.mark.parametrize(
    "status,expected",
    [
        (None, "Progressing"),
        ({"sync": {"status": "OutOfSync"}, "health": {"status": "Healthy"}}, "Progressing"),
        ({"sync": {"status": "Synced"}, "health": {"status": "Progressing"}}, "Progressing"),
        ({"sync": {"status": "OutOfSync"}, "health": {"status": "Degraded"}}, "Degraded"),
        ({"sync": {"status": "Synced"}, "health": {"status": "Healthy"}}, "Healthy"),
    ],
)
def test_a_wave_waits_for_the_one_before(status, expected):
    obj = {"kind": "Application", "metadata": {"name": "a"}} | ({"status": status} if status else {})
    assert health(script("argoproj.io_Application"), obj)["status"] == expected


def test_applications_come_in_waves():
    waves = {}
    for path in (ROOT / "examples/argocd/apps").glob("*.yaml"):
        app = yaml.safe_load(path.read_text())
        wave = int(app["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        waves[wave] = path.stem
        options = app["spec"]["syncPolicy"]["syncOptions"]
        assert "ServerSideApply=true" in options
        if path.stem in ("models", "tenants"):
            assert "SkipDryRunOnMissingResource=true" in options
        assert (ROOT / app["spec"]["source"]["path"]).is_dir()
    assert [waves[w] for w in sorted(waves)] == ["crds", "strata", "models", "tenants"]


def test_the_set_steps_through_the_same_parts():
    spec = yaml.safe_load((ROOT / "examples/argocd/applicationset.yaml").read_text())["spec"]
    parts = [e["part"] for e in spec["generators"][0]["matrix"]["generators"][1]["list"]["elements"]]
    steps = [s["matchExpressions"][0]["values"] for s in spec["strategy"]["rollingSync"]["steps"]]
    assert [[p] for p in parts] == steps == [["crds"], ["strata"], ["models"], ["tenants"]]
