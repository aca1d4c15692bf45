"""Who is asked for metrics, and how."""

import network
import pytest
import scrape
from conftest import rendered_by_operator

VALUES = {"serviceMonitor": {"enabled": True}, "networkPolicy": {"metricsNamespaces": ["monitoring"]}}


def monitors(helm, kind: str, values: dict | None = None) -> dict[str, dict]:
    objects = helm.objects("strata", VALUES | (values or {}), *scrape.KINDS)
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def pod_monitor(helm, values: dict | None = None) -> dict:
    (only,) = monitors(helm, "PodMonitor", values).values()
    return only["spec"]


def test_each_kind_is_made_where_it_is_known(helm):
    for kind in ("ServiceMonitor", "PodMonitor"):
        known = helm.objects("strata", VALUES, f"--api-versions=monitoring.coreos.com/v1/{kind}")
        assert {o["kind"] for o in known if "Monitor" in o["kind"]} == {kind}
    assert not [o for o in helm.objects("strata", VALUES) if "Monitor" in o["kind"]]


def test_all_but_the_platform_are_asked_at_their_services(helm):
    """The platform has no metrics."""
    assert set(monitors(helm, "ServiceMonitor")) == {"strata-operator", "strata-gateway"}
    ungoverned = {"mode": "production", "platform": {"insecureNoAuth": True}}
    assert set(monitors(helm, "ServiceMonitor", ungoverned)) == {"strata-operator"}


def test_the_pods_are_those_with_models(helm):
    spec = pod_monitor(helm)
    assert spec["namespaceSelector"] == {"any": True}
    named = pod_monitor(helm, {"modelNamespaces": ["a", "b"], "platform": {"modelNamespace": "a"}})
    assert named["namespaceSelector"] == {"matchNames": ["a", "b"]}
    pods = [scrape.pod_of(o) for _, o in rendered_by_operator() if _has_containers(o)]
    assert {p.labels["app.kubernetes.io/component"] for p in pods} == {"engine", "scheduler"}
    for pod in pods:
        assert network.matches(spec["selector"], pod.labels)
    for own in (o for o in helm.objects("strata") if o["kind"] == "Deployment"):
        assert not network.matches(spec["selector"], own["spec"]["template"]["metadata"]["labels"])


def _has_containers(obj: dict) -> bool:
    return "containers" in obj.get("spec", {}).get("template", {}).get("spec", {})


@pytest.mark.parametrize("tls", [True, False])
def test_metrics_bear_the_models_name(helm, tls):
    """By it an autoscaler asks for them: METRIC_LABEL in operator/src/cluster/scale.rs."""
    (endpoint,) = pod_monitor(helm, {"internalTls": tls})["podMetricsEndpoints"]
    asked = scrape.monitored(endpoint, scrape.pod_of(scrape.ENGINE))
    assert asked == [{"__scheme__": "http", "model_deployment": "smol"}]


def test_pods_are_asked_as_they_speak(helm):
    """By TLS those that say so, without a look at the name in the certificate, which names a component."""
    (endpoint,) = pod_monitor(helm)["podMetricsEndpoints"]
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}
    (asked,) = scrape.monitored(endpoint, scrape.pod_of(scrape.with_tls(scrape.ENGINE)))
    assert asked["__scheme__"] == "https"
    (plain,) = pod_monitor(helm, {"internalTls": False})["podMetricsEndpoints"]
    assert "tlsConfig" not in plain


def test_what_the_definitions_would_add_is_there(helm):
    """Else a GitOps tool sees drift: the Prometheus operator's definitions put `action: replace` there."""
    (endpoint,) = pod_monitor(helm)["podMetricsEndpoints"]
    assert all(rule["action"] == "replace" for rule in endpoint["relabelings"])
