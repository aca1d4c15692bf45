"""What the charts render, frozen: one snapshot for each set of values. UPDATE=1 writes them anew."""

import os
import shutil

import pytest
import yaml
from conftest import CHARTS, arguments_of, values_of

SNAPSHOTS = CHARTS / "tests/snapshots"


def frozen(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE"):
        path.write_text(text)
    assert path.exists(), f"{name} is new: look at it, then run `UPDATE=1 make chart-test`"
    assert text == path.read_text(), f"{name} differs: if that is wanted, run `UPDATE=1 make chart-test`"


def test_lint(each_helm, case):
    for chart in ("strata", "strata-crds"):
        values = ["--values", str(case)] if chart == "strata" else []
        out = each_helm.run("lint", "--strict", str(CHARTS / chart), "--kube-version", "1.36.0", *values)
        assert "0 chart(s) failed" in out


def test_snapshot(helm, case):
    frozen(f"{case.stem}.yaml", helm.template("strata", values_of(case), *arguments_of(case)))


def test_both_helms_render_alike(helm, helm3, case):
    four = helm.objects("strata", values_of(case), *arguments_of(case))
    assert four == helm3.objects("strata", values_of(case), *arguments_of(case))


def test_nothing_is_written_that_the_api_server_drops(helm, case):
    """An empty list or map that it does not keep would be drift for ever. (A volume `emptyDir: {}` is kept.)"""
    empty = [line for line in helm.template("strata", values_of(case)).splitlines() if line.rstrip().endswith(("[]", " null"))]
    assert empty == []


def test_nothing_is_left_to_argo_cd_that_it_passes_over(helm, case):
    """Its own settings, `resource.exclusions`: of these kinds it neither makes nor sees an object."""
    excluded = {
        "Endpoints", "EndpointSlice", "Lease", "SelfSubjectReview", "TokenReview", "LocalSubjectAccessReview",
        "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SubjectAccessReview", "CertificateSigningRequest",
        "CertificateRequest", "PolicyReport", "ClusterPolicyReport",
    }  # fmt: skip
    kinds = {o["kind"] for o in helm.objects("strata", values_of(case), *arguments_of(case))}
    assert not kinds & excluded


def test_rendering_twice_gives_the_same(helm, case):
    """GitOps compares renderings: no random value, nothing looked up in a cluster."""
    assert helm.template("strata", values_of(case)) == helm.template("strata", values_of(case))
    for template in (CHARTS / "strata").rglob("templates/*"):
        for word in ("lookup ", "rand", "genCA", "genSelfSigned", "now |", "uuidv4"):
            assert word not in template.read_text(), f"{template.name} uses {word}"


@pytest.mark.parametrize("mode", ["development", "production", "enterprise"])
def test_notes(helm, mode, tmp_path):
    """What Helm tells after an install. `helm template` leaves it out, so it is made a template here."""
    chart = tmp_path / "strata"
    shutil.copytree(CHARTS / "strata", chart)
    notes = (chart / "templates/NOTES.txt").read_text()
    (chart / "templates/notes.yaml").write_text("notes: |\n  {{- include \"notes\" . | nindent 2 }}\n")
    (chart / "templates/_notes.tpl").write_text('{{- define "notes" -}}\n' + notes + "{{- end -}}\n")
    values = {"mode": mode, "platform": {"insecureNoAuth": mode != "enterprise"}}
    values |= {"serviceMonitor": {"enabled": True}, "networkPolicy": {"metricsNamespaces": ["monitoring"]}}
    rendered = [o for o in helm.objects(chart, values) if "notes" in o]
    frozen(f"notes-{mode}.txt", rendered[0]["notes"] + "\n")


class TestDefinitions:
    """strata-crds."""

    def test_they_are_those_of_the_types(self, helm):
        made = {d["metadata"]["name"]: d["spec"] for d in helm.objects("strata-crds")}
        written = [yaml.safe_load(p.read_text()) for p in (CHARTS.parent / "crds").glob("*.yaml")]
        assert made == {d["metadata"]["name"]: d["spec"] for d in written}

    def test_they_outlive_the_chart_unless_told(self, helm):
        policy = "helm.sh/resource-policy"
        for definition in helm.objects("strata-crds"):
            assert definition["metadata"]["annotations"] == {
                policy: "keep",
                "argocd.argoproj.io/sync-options": "ServerSideApply=true",
            }
        values = {"keep": False, "annotations": {"a": "b"}, "labels": {"c": "d"}}
        for definition in helm.objects("strata-crds", values):
            annotations = definition["metadata"]["annotations"]
            assert policy not in annotations and annotations["a"] == "b"
            assert definition["metadata"]["labels"]["c"] == "d"

    def test_they_can_be_left_out(self, helm):
        assert helm.objects("strata-crds", {"enabled": False}) == []
