"""A served model: Strata in mode enterprise, one tenant with a key, one model in a namespace of its own."""

from __future__ import annotations

from install import MODEL, NAMESPACE, Strata, model
from kube import Kube
from streams import Load

MODELS = "models"
NAME = "smol"


class Serving:
    def __init__(self, kube: Kube, strata: Strata, replicas: int | None = 1, values: dict | None = None, **spec):
        self.kube, self.strata = kube, strata
        strata.install(**(values or {}))
        self.key = strata.tenant("loader", NAMESPACE)
        self.uri = strata.uri(MODELS)
        self.spec = spec
        self.apply(replicas)
        kube.wait_ready(MODELS, NAME)
        self.base = f"{kube.url(NAMESPACE, 'strata-gateway')}/v1"
        # The gateway hears of tenant and key by its own watch.
        self.ask()

    @property
    def path(self) -> str:
        return self.kube.path("ModelDeployment", MODELS, NAME)

    def apply(self, replicas: int | None = 1, **spec) -> None:
        """The whole ModelDeployment, as GitOps would apply it again."""
        merged = {**self.spec, **spec}
        self.kube.apply(model(NAME, self.uri, replicas, **merged), namespace=MODELS)

    def scale(self, replicas: int) -> None:
        self.kube.kubectl("scale", "-n", MODELS, f"modeldeployments.strata.dev/{NAME}", f"--replicas={replicas}")

    def ready(self, deadline_s: float = 90) -> dict:
        return self.kube.wait_ready(MODELS, NAME, deadline_s)

    def condition(self) -> dict:
        return self.kube.condition("ModelDeployment", MODELS, NAME)

    def engines(self, **labels: str) -> dict[str, str]:
        return self.kube.uids(MODELS, component="engine", model=NAME, **labels)

    def engines_gone_to(self, count: int) -> bool:
        """Whether so many engine pods are there, those that are ending included."""
        selector = {"app.kubernetes.io/component": "engine", "strata.dev/model-deployment": NAME}
        return len(self.kube.items(f"/api/v1/namespaces/{MODELS}/pods", selector)) == count

    def load(self, clients: int = 4, tokens: int = 48) -> Load:
        return Load(self.base, self.key, MODEL, clients, tokens)

    def more_streams(self, load: Load, count: int, deadline_s: float = 90) -> None:
        """Waits until so many more streams were begun and ended."""
        before = load.finished()
        self.kube.wait(f"{count} more streams", lambda: load.finished() >= before + count, deadline_s)

    def ask(self, deadline_s: float = 30) -> str:
        """One short answer; waits for it while it is refused."""
        client = self.strata.client("strata-gateway", self.key)

        def answer() -> str | None:
            from openai import APIStatusError

            try:
                got = client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
                )
                return got.choices[0].message.content or "-"
            except APIStatusError as error:
                self._last = error
                return None

        self._last = None
        try:
            return self.kube.wait("an answer", answer, deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._last}") from None
