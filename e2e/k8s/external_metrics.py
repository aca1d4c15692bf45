"""A small external.metrics.k8s.io/v1beta1 API, whose values a test sets.

It stands for what KEDA or the Prometheus adapter serve in a real cluster: a horizontal pod autoscaler
asks it what a metric is, by name and labels. It answers over TLS with a certificate of its own, and is
made known to the API server as an APIService.
"""

import json
import ssl
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GROUP = "external.metrics.k8s.io/v1beta1"


class ExternalMetrics:
    """Serves `values`: {(namespace, metric): quantity}. `asked` has every question, with its labels."""

    def __init__(self, host: str, folder: Path):
        self.host = host
        self.values: dict[tuple[str, str], str] = {}
        self.asked: list[tuple[str, str, str]] = []
        certificate, key = folder / "metrics.crt", folder / "metrics.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=external-metrics", "-addext", f"subjectAltName=IP:{host}",
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer((host, 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "ExternalMetrics":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def manifests(self) -> list[dict]:
        """The Service and the APIService that lead the API server here. `host` is reached as a name."""
        return [
            {
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "external-metrics", "namespace": "kube-system"},
                "spec": {"type": "ExternalName", "externalName": self.host, "ports": [{"port": self.port}]},
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
                "spec": {
                    "group": "external.metrics.k8s.io", "version": "v1beta1",
                    "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True,
                    "service": {"name": "external-metrics", "namespace": "kube-system", "port": self.port},
                },
            },
        ]

    def _answer(self, path: str, query: str) -> dict | None:
        parts = path.strip("/").split("/")
        if path.rstrip("/") == f"/apis/{GROUP}":
            resource = {"name": "*", "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource]}
        if len(parts) == 6 and parts[3] == "namespaces":
            namespace, metric = parts[4], parts[5]
            labels = urllib.parse.parse_qs(query).get("labelSelector", [""])[0]
            self.asked.append((namespace, metric, labels))
            value = self.values.get((namespace, metric))
            if value is None:
                return None
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            item = {"metricName": metric, "metricLabels": {}, "timestamp": now, "value": value}
            return {"kind": "ExternalMetricValueList", "apiVersion": GROUP, "metadata": {}, "items": [item]}
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                address = urllib.parse.urlsplit(self.path)
                found = metrics._answer(address.path, address.query)
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"}
                body = json.dumps(found or missing).encode()
                self.send_response(200 if found else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
