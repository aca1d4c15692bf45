"""Who may reach whom: the matrix of allowed flows, over the rendered policies. All else is denied.

The test network of e2e enforces no policy, so this is where they are held.
"""

import copy
import itertools

import network
import pytest
from conftest import rendered_by_operator, values_of
from network import Address, Pod

PORTS = {"http": 8000, "internal": 8443, "picker": 9002, "kv-events": 5557, "kv-replay": 5558}


def strata(component: str, namespace: str) -> Pod:
    labels = {"app.kubernetes.io/name": "strata", "app.kubernetes.io/component": component}
    return Pod(f"{component}@{namespace}", namespace, labels, {}, PORTS)


OWN = {name: strata(name, "strata") for name in ("operator", "gateway", "platform")}
MODELS = {name: strata(name, "models") for name in ("scheduler", "engine")}
OTHERS = {
    "app": Pod("app", "apps", {"app": "chat"}, {}, PORTS),
    # Not Strata's, and says it is.
    "impostor": strata("gateway", "apps"),
    "prometheus": Pod("prometheus", "monitoring", {"app": "prometheus"}, {}, PORTS),
    "internet": Address("internet", "203.0.113.9"),
}
# What answers names: CoreDNS, OpenShift's, and a cache on the node.
DNS = [
    (Pod("coredns", "kube-system", {"k8s-app": "kube-dns"}, {}, {}), 53),
    (Pod("dns-default", "openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}, {}, {}), 5353),
    (Pod("node-local-dns", "kube-system", {"k8s-app": "node-local-dns"}, {}, {}), 53),
    (Address("cache", "169.254.20.10"), 53),
]
API_SERVER = Address("apiserver", "10.0.0.1")
EVERYONE = {**OWN, **MODELS, **OTHERS}

# The gateway answers applications and the layers on ports of their own.
CLIENTS, LAYERS = 8000, 8443


def port_of(target: str) -> int:
    """Where a layer answers another."""
    return LAYERS if target == "gateway" else CLIENTS


# Who calls whom as a layer, by mode; the entrances are everyone's.
FLOWS = {
    "development": {("platform", "engine"), ("operator", "engine")},
    "production": {("platform", "scheduler"), ("operator", "scheduler"), ("operator", "engine")},
    "enterprise": {
        ("platform", "gateway"),
        ("gateway", "scheduler"),
        ("operator", "gateway"),
        ("operator", "scheduler"),
        ("operator", "engine"),
    },
}
ENTRANCES = {"development": ["platform"], "production": ["platform"], "enterprise": ["platform", "gateway"]}


def policies(helm, mode: str, values: dict | None = None) -> list[dict]:
    values = {"mode": mode, "platform": {"insecureNoAuth": mode != "enterprise"}} | (values or {})
    return [o for o in helm.objects("strata", values) if o["kind"] == "NetworkPolicy"]


def installed(mode: str) -> list[str]:
    return ["operator", *ENTRANCES[mode]]


@pytest.mark.parametrize("mode", FLOWS)
def test_strata_calls_only_the_next_layer(helm, mode):
    rules = policies(helm, mode)
    pairs = itertools.product(installed(mode), {**OWN, **MODELS, **OTHERS})
    out = {(s, t) for s, t in pairs if s != t and network.allowed(rules, OWN[s], EVERYONE[t], port_of(t))}
    # Of Strata's own the entrances take everyone in; who may call out is the sources' matter.
    assert out == {(s, t) for s, t in FLOWS[mode] if s in OWN}


@pytest.mark.parametrize("mode", FLOWS)
def test_only_the_entrances_are_reachable(helm, mode):
    rules = policies(helm, mode)
    for source in OTHERS.values():
        reached = [t for t in installed(mode) if network.allowed(rules, source, OWN[t], 8000)]
        assert reached == ENTRANCES[mode], source.name
        for port in (8001, LAYERS):
            assert not any(network.allowed(rules, source, OWN[t], port) for t in installed(mode)), source.name


def test_the_layer_above_has_a_port_of_its_own(helm):
    rules = policies(helm, "enterprise")
    for caller in ("platform", "operator"):
        assert network.allowed(rules, OWN[caller], OWN["gateway"], LAYERS)
        assert not network.allowed(rules, OWN[caller], OWN["gateway"], CLIENTS)
    plain = policies(helm, "enterprise", {"internalTls": False})
    for caller in ("platform", "operator"):
        assert network.allowed(plain, OWN[caller], OWN["gateway"], CLIENTS)
        assert not network.allowed(plain, OWN[caller], OWN["gateway"], LAYERS)


@pytest.mark.parametrize("mode", FLOWS)
def test_names_and_the_api_server(helm, mode):
    rules = policies(helm, mode)
    for name in installed(mode):
        for server, port in DNS:
            for protocol in ("UDP", "TCP"):
                assert network.allowed(rules, OWN[name], server, port, protocol), f"{name} and {server.name}"
        reaches = network.allowed(rules, OWN[name], API_SERVER, 6443)
        assert reaches is (name != "platform"), f"{name} and the API server"
        assert not network.allowed(rules, OWN[name], OTHERS["internet"], 80)


def test_who_may_be_narrowed(helm):
    app = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}]
    values = {
        "networkPolicy": {
            "entranceFrom": app,
            "metricsNamespaces": ["monitoring"],
            "apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]},
        }
    }
    rules = policies(helm, "enterprise", values)
    for entrance in ("platform", "gateway"):
        assert network.allowed(rules, OTHERS["app"], OWN[entrance], 8000)
        # Metrics are on the one port that there is.
        assert network.allowed(rules, OTHERS["prometheus"], OWN[entrance], 8000)
        assert not network.allowed(rules, OTHERS["prometheus"], OWN[entrance], LAYERS)
        assert not network.allowed(rules, OTHERS["internet"], OWN[entrance], 8000)
    assert network.allowed(rules, OWN["platform"], OWN["gateway"], LAYERS)
    assert network.allowed(rules, OWN["operator"], OWN["gateway"], LAYERS)
    assert network.allowed(rules, OTHERS["prometheus"], OWN["operator"], 8000)
    assert not network.allowed(rules, OTHERS["app"], OWN["operator"], 8000)
    assert network.allowed(rules, OWN["gateway"], API_SERVER, 6443)
    assert not network.allowed(rules, OWN["gateway"], OTHERS["internet"], 6443)


def test_without_metrics_nobody_is_let_in_for_them(helm):
    app = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}]
    rules = policies(helm, "enterprise", {"networkPolicy": {"entranceFrom": app}})
    assert not any(network.allowed(rules, OTHERS["prometheus"], OWN[name], 8000) for name in OWN)


def test_only_the_namespaces_with_models(helm):
    rules = policies(helm, "enterprise", {"modelNamespaces": ["models"]})
    assert network.allowed(rules, OWN["gateway"], MODELS["scheduler"], 8000)
    assert not network.allowed(rules, OWN["gateway"], strata("scheduler", "elsewhere"), 8000)


def test_more_egress(helm):
    rule = {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 443}]}
    rules = policies(helm, "enterprise", {"platform": {"extraEgress": [rule]}})
    assert network.allowed(rules, OWN["platform"], OTHERS["internet"], 443)
    assert not network.allowed(rules, OWN["gateway"], OTHERS["internet"], 80)


def test_without_policies_nothing_is_held(helm, case):
    if values_of(case).get("networkPolicy", {}).get("enabled") is False:
        assert [o for o in helm.objects("strata", values_of(case)) if o["kind"] == "NetworkPolicy"] == []


class TestTheWhole:
    """The chart's policies and the operator's together, in two namespaces with models."""

    METRICS = {"networkPolicy": {"metricsNamespaces": ["monitoring"]}}

    @staticmethod
    def of_operator(mode: str) -> list[dict]:
        """The operator's policies for the namespace `models`, and the same for `others`."""
        snapshot = f"policies_in_mode_{mode}"
        found = [o for name, o in rendered_by_operator() if name.endswith(snapshot)]
        assert found, f"the operator has no snapshot {snapshot}"
        others = copy.deepcopy(found)
        for policy in others:
            policy["metadata"]["namespace"] = "others"
        return found + others

    @staticmethod
    def pods(mode: str) -> dict[str, Pod]:
        """Every pod that there is in a mode, and who else may try."""
        found = {name: OWN[name] for name in installed(mode)}
        for namespace in ("models", "others"):
            engine = strata("engine", namespace)
            engine.labels["strata.dev/model-deployment"] = "here"
            found[f"engine@{namespace}"] = engine
            if mode != "development":
                found[f"scheduler@{namespace}"] = strata("scheduler", namespace)
        return found | OTHERS

    @staticmethod
    def expected(mode: str) -> set[tuple[str, str]]:
        flows = set()
        for source in OTHERS:
            flows |= {(source, entrance) for entrance in ENTRANCES[mode]}
        # Prometheus; what it may read it reads on the one port that there is.
        flows.add(("prometheus", "operator"))
        for namespace in ("models", "others"):
            engine, scheduler = f"engine@{namespace}", f"scheduler@{namespace}"
            flows |= {("prometheus", engine), ("operator", engine)}
            if mode == "development":
                flows.add(("platform", engine))
                continue
            above = "gateway" if mode == "enterprise" else "platform"
            flows |= {("prometheus", scheduler), ("operator", scheduler), (above, scheduler), (scheduler, engine)}
        if mode == "enterprise":
            flows |= {("platform", "gateway"), ("operator", "gateway")}
        return flows

    @pytest.mark.parametrize("mode", FLOWS)
    def test_matrix(self, helm, mode):
        rules = policies(helm, mode, self.METRICS) + self.of_operator(mode)
        pods = self.pods(mode)
        layers = set(pods) - set(OTHERS)

        def reaches(source: str, target: str) -> bool:
            port = port_of(target) if source in layers else CLIENTS
            return network.allowed(rules, pods[source], pods[target], port)

        possible = {
            (s, t)
            for s, t in itertools.permutations(pods, 2)
            if isinstance(pods[t], Pod) and t not in OTHERS and reaches(s, t)
        }
        assert possible == self.expected(mode)

    @pytest.mark.parametrize("mode", FLOWS)
    def test_only_schedulers_read_what_caches_hold(self, helm, mode):
        """It has the tokens of what was asked."""
        rules = policies(helm, mode, self.METRICS) + self.of_operator(mode)
        pods = self.pods(mode)
        for port in (PORTS["kv-events"], PORTS["kv-replay"]):
            pairs = itertools.permutations(pods, 2)
            reach = {(s, t) for s, t in pairs if t.startswith("engine") and network.allowed(rules, pods[s], pods[t], port)}
            of = {(f"scheduler@{n}", f"engine@{n}") for n in ("models", "others")}
            assert reach == (set() if mode == "development" else of)

    def test_proxies_reach_the_picker_and_what_it_picks(self, helm):
        rules = policies(helm, "production", self.METRICS)
        rules += [o for name, o in rendered_by_operator() if name.endswith("policies_with_a_picker")]
        envoy = Pod("envoy", "ingress", {"app": "envoy"}, {}, PORTS)
        beside = Pod("beside", "ingress", {"app": "other"}, {}, PORTS)
        engine = strata("engine", "models")
        for caller in (envoy, beside, OTHERS["app"], OTHERS["prometheus"], OWN["platform"]):
            asks = network.allowed(rules, caller, MODELS["scheduler"], PORTS["picker"])
            assert asks is (caller is envoy), caller.name
        assert network.allowed(rules, envoy, engine, CLIENTS) and not network.allowed(rules, beside, engine, CLIENTS)
        assert not network.allowed(rules, envoy, MODELS["scheduler"], CLIENTS)
        assert not network.allowed(rules, envoy, engine, PORTS["kv-events"])

    @pytest.mark.parametrize("mode", FLOWS)
    def test_what_leaves_the_cluster(self, helm, mode):
        """Calls of the API server, which may be anywhere; and for a model that is fetched its download."""
        rules = policies(helm, mode) + self.of_operator(mode)
        for name, pod in self.pods(mode).items():
            if name in OTHERS:
                continue
            api = name in ("operator", "gateway") or name.startswith("scheduler")
            for port in (443, 6443):
                assert network.allowed(rules, pod, API_SERVER, port) is api, name
                # As the guide says, below `Without internet`.
                assert network.allowed(rules, pod, OTHERS["internet"], port) is api, name
            assert network.allowed(rules, pod, OTHERS["internet"], 53, "UDP") is not name.startswith("engine"), name
            for port in (22, 80, 8000, LAYERS):
                assert not network.allowed(rules, pod, OTHERS["internet"], port), name
            assert not network.allowed(rules, pod, OTHERS["app"], 8000), name
        fetched = strata("engine", "models")
        fetched.labels["strata.dev/model-deployment"] = "fetched"
        if mode != "development":
            assert network.allowed(rules, fetched, OTHERS["internet"], 443)
        assert not network.allowed(rules, fetched, OTHERS["internet"], 22)


@pytest.mark.parametrize("mode", FLOWS)
def test_where_the_api_server_is_named_nothing_else_leaves(helm, mode):
    """The operator does the same for schedulers, by the flag that it is given (test_pods.py)."""
    rules = policies(helm, mode, {"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"]}}})
    for name in installed(mode):
        for port in (443, 6443):
            assert network.allowed(rules, OWN[name], API_SERVER, port) is (name != "platform"), name
        for port in (22, 80, 443, 6443, 8000, LAYERS):
            assert not network.allowed(rules, OWN[name], OTHERS["internet"], port), name
