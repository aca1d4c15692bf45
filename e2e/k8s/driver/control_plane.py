"""etcd, kube-apiserver, kube-controller-manager, kube-scheduler and DNS, in a sandbox or on loopback."""

from __future__ import annotations

import json
import pathlib
import secrets
import socket
from dataclasses import dataclass

from . import binaries
from .api import Api
from .daemon import Daemons
from .network import Network
from .pki import Authority
from .sandbox import Sandbox

ADMIN = "admin"
DOMAIN = "cluster.local"
# Component -> (user, groups): the names that Kubernetes' own default roles are bound to.
USERS = {
    ADMIN: ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("system:coredns", "system:masters"),
    "kwok": ("kwok", "system:masters"),
}
# Every finished request by its user, verb and object: tests count API calls from it.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["system:apiserver", "admin"]},
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/metrics"]},
        {"level": "Metadata"},
    ],
}


@dataclass
class Place:
    """Where the daemons run and under which address others reach them."""

    address: str
    advertise: str
    sandbox: Sandbox | None = None

    def port(self, fixed: int) -> int:
        if self.sandbox:
            return fixed
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            return probe.getsockname()[1]


class ControlPlane:
    def __init__(self, state: pathlib.Path, daemons: Daemons, network: Network, place: Place, nodes: int):
        self.state, self.daemons, self.network, self.place = state, daemons, network, place
        self.nodes = nodes
        self.pki = state / "pki"
        self.port = place.port(6443)
        self._etcd = f"http://127.0.0.1:{place.port(2379)}"
        self._etcd_peer = f"http://127.0.0.1:{place.port(2380)}"

    @property
    def server(self) -> str:
        return f"https://{self.place.address}:{self.port}"

    def start(self, name: str, command: list[str]) -> None:
        if self.place.sandbox:
            self.place.sandbox.start(name, command)
        else:
            self.daemons.start(name, command)

    def prepare(self) -> None:
        """Writes certificates, tokens and kubeconfigs."""
        self.ca = Authority(self.pki, "ca")
        front = Authority(self.pki, "front-proxy-ca")
        service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
        addresses = {"127.0.0.1", self.place.address, self.place.advertise, self.network.api_service}
        names = [f"DNS:{n}" for n in ["localhost", *service]] + [f"IP:{a}" for a in sorted(addresses)]
        self.ca.issue("apiserver", "/CN=kube-apiserver", *names)
        self.ca.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        front.issue("front-proxy", "/CN=front-proxy")
        self.ca.issue("service-account", "/CN=service-accounts")
        users = {**USERS, **{f"node-{n}": (f"system:node:node-{n}", "system:nodes") for n in range(1, self.nodes + 1)}}
        tokens = {name: secrets.token_hex(16) for name in users}
        lines = [f'{tokens[n]},{user},{n},"{groups}"' for n, (user, groups) in users.items()]
        (self.pki / "tokens.csv").write_text("\n".join(lines) + "\n")
        for name, token in tokens.items():
            self._kubeconfig(name, token)
        (self.state / "audit-policy.json").write_text(json.dumps(AUDIT))
        self.api = Api(self.server, self.ca.crt, tokens[ADMIN])

    def kubeconfig(self, name: str) -> pathlib.Path:
        return self.state / ("kubeconfig" if name == ADMIN else f"kubeconfig-{name}")

    def _kubeconfig(self, name: str, token: str) -> None:
        # JSON is YAML, and each client reads it.
        cluster = {"server": self.server, "certificate-authority": str(self.ca.crt)}
        body = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "strata", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "strata", "context": {"cluster": "strata", "user": name}}],
            "current-context": "strata",
        }
        path = self.kubeconfig(name)
        path.write_text(json.dumps(body, indent=1))
        path.chmod(0o600)

    def start_api(self) -> None:
        self.start(
            "etcd",
            [
                str(binaries.path_of("etcd")),
                f"--data-dir={self.state / 'etcd'}",
                f"--listen-client-urls={self._etcd}",
                f"--advertise-client-urls={self._etcd}",
                f"--listen-peer-urls={self._etcd_peer}",
                f"--initial-advertise-peer-urls={self._etcd_peer}",
                f"--initial-cluster=default={self._etcd_peer}",
                # A test cluster does not outlive a loss of power.
                "--unsafe-no-fsync",
                "--quota-backend-bytes=4294967296",
                "--log-level=warn",
            ],
        )
        pki = self.pki
        self.start(
            "kube-apiserver",
            [
                str(binaries.path_of("kube-apiserver")),
                f"--etcd-servers={self._etcd}",
                f"--bind-address={self.place.address}",
                f"--advertise-address={self.place.advertise}",
                f"--secure-port={self.port}",
                f"--tls-cert-file={pki / 'apiserver.crt'}",
                f"--tls-private-key-file={pki / 'apiserver.key'}",
                f"--client-ca-file={pki / 'ca.crt'}",
                f"--token-auth-file={pki / 'tokens.csv'}",
                "--authorization-mode=Node,RBAC",
                f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
                f"--service-account-key-file={pki / 'service-account.crt'}",
                f"--service-account-signing-key-file={pki / 'service-account.key'}",
                f"--service-cluster-ip-range={self.network.services}",
                f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
                f"--kubelet-client-key={pki / 'kubelet-client.key'}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
                "--requestheader-allowed-names=front-proxy",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
                f"--proxy-client-key-file={pki / 'front-proxy.key'}",
                f"--audit-policy-file={self.state / 'audit-policy.json'}",
                f"--audit-log-path={self.daemons.logs / 'audit.log'}",
                "--profiling=false",
            ],
        )

    def wait_api(self) -> None:
        self.daemons.wait("kube-apiserver", "the API server to be ready", lambda: self.api.answers("/readyz"), 90)

    def start_controllers(self, rate: int) -> None:
        """`rate` is the controllers' own limit of API calls a second; the burst is twice that."""
        self.start(
            "kube-controller-manager",
            [
                str(binaries.path_of("kube-controller-manager")),
                f"--kubeconfig={self.kubeconfig('kube-controller-manager')}",
                f"--authentication-kubeconfig={self.kubeconfig('kube-controller-manager')}",
                f"--authorization-kubeconfig={self.kubeconfig('kube-controller-manager')}",
                f"--secure-port={self.place.port(10257)}",
                f"--bind-address={self.place.address}",
                "--leader-elect=false",
                "--use-service-account-credentials=true",
                f"--root-ca-file={self.pki / 'ca.crt'}",
                f"--service-account-private-key-file={self.pki / 'service-account.key'}",
                f"--kube-api-qps={rate}",
                f"--kube-api-burst={2 * rate}",
                # Tests of autoscaling wait for these two.
                "--horizontal-pod-autoscaler-sync-period=2s",
                "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
                "--profiling=false",
            ],
        )
        self.start(
            "kube-scheduler",
            [
                str(binaries.path_of("kube-scheduler")),
                f"--kubeconfig={self.kubeconfig('kube-scheduler')}",
                f"--authentication-kubeconfig={self.kubeconfig('kube-scheduler')}",
                f"--authorization-kubeconfig={self.kubeconfig('kube-scheduler')}",
                f"--secure-port={self.place.port(10259)}",
                f"--bind-address={self.place.address}",
                "--leader-elect=false",
                f"--kube-api-qps={rate}",
                f"--kube-api-burst={2 * rate}",
                "--profiling=false",
            ],
        )

    def wait_controllers(self) -> None:
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.daemons.wait(
            "kube-controller-manager", "the default service account", lambda: self.api.find(account), 60
        )

    def start_dns(self) -> None:
        """CoreDNS beside the control plane: pods reach it by its address, which their kubelet gives them."""
        corefile = self.state / "Corefile"
        corefile.write_text(
            f".:53 {{\n  bind {self.place.address}\n  errors\n  kubernetes {DOMAIN} in-addr.arpa {{\n"
            f"    kubeconfig {self.kubeconfig('coredns')}\n    pods insecure\n    ttl 2\n  }}\n}}\n"
        )
        self.start("coredns", [str(binaries.path_of("coredns")), "-conf", str(corefile)])

    def start_kwok(self, nodes: int) -> None:
        """Nodes that are only objects: kwok says that they and their pods are ready, and nothing runs."""
        self.start(
            "kwok",
            [
                str(binaries.path_of("kwok")),
                f"--kubeconfig={self.kubeconfig('kwok')}",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=40",
                "--enable-crds=",
                f"--server-address=127.0.0.1:{self.place.port(10247)}",
            ],
        )
        capacity = {"cpu": "512", "memory": "4Ti", "pods": "5000", "ephemeral-storage": "4Ti"}
        for number in range(1, nodes + 1):
            name = f"kwok-{number}"
            labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "kwok"}
            self.api.create(
                "/api/v1/nodes",
                {
                    "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
                    "status": {"capacity": capacity, "allocatable": capacity},
                },
            )
