"""docs/guides/kubernetes.md, word by word: the commands that it shows are run, in its order."""

from __future__ import annotations

import os
import re
import socket

import pytest
from driver import binaries
from install import NAMESPACE, ROOT

pytestmark = pytest.mark.pods

GUIDE = (ROOT / "docs/guides/kubernetes.md").read_text()


def shown(heading: str) -> str:
    """The shell commands below a heading, as one script."""
    section = GUIDE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    return "\n".join(blocks)


@pytest.fixture(scope="module")
def shell(kube, strata, tmp_path_factory):
    """Runs a script at the repository's root, where `helm` and `kubectl` are those of the cluster."""
    tools = tmp_path_factory.mktemp("tools")
    for name, binary in (("helm", "helm4"), ("kubectl", "kubectl")):
        (tools / name).symlink_to(binaries.path_of(binary))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(script: str) -> str:
        # A port that is free here, and the time that a reader takes between two commands.
        script = script.replace("strata-platform 8000 &", f"strata-platform {port}:8000 >/dev/null & trap 'kill %1' EXIT")
        script = script.replace("curl http://127.0.0.1:8000", f"curl -sf --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:{port}")
        env = {**kube.env, "PATH": f"{tools}:{os.environ['PATH']}"}
        old, kube.env = kube.env, env
        try:
            return kube.run(["bash", "-ec", f"cd {ROOT}\n{script}"], timeout=600)
        finally:
            kube.env = old

    return run


def test_every_command(kube, strata, shell):
    if not kube.own:
        pytest.skip("the guide's image and claim are those of a cluster of our own")
    strata.uri(NAMESPACE)
    answer = shell(shown("Install"))
    assert '"content"' in answer
    shell(shown("What you will want to set"))
    shell(shown("Upgrade, roll back"))
    kube.wait("the platform", lambda: kube.pods(NAMESPACE, component="platform"))
    shell(shown("Uninstall"))
    # Kubernetes' collector looks only every half minute whether there is a new kind.
    kube.wait("the pods to be gone", lambda: not kube.pods(NAMESPACE), 90)
    assert kube.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tenants.strata.dev") is None
