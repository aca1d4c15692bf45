"""A cluster that was given: nothing in it that somebody uses is touched, and nothing of the tests stays."""

from __future__ import annotations

from kube import GROUP, KINDS, Kube

# What the tests install into, and remove with all that is in it.
NAMESPACES = ["strata", "models"]
DEFINITIONS = [f"{plural}.{GROUP.partition('/')[0]}" for plural in KINDS.values()]


def in_use(kube: Kube) -> str | None:
    """Why the tests must leave this cluster alone; nothing when they need not."""
    paths = {f"the namespace {name}": f"/api/v1/namespaces/{name}" for name in NAMESPACES}
    for name in DEFINITIONS:
        paths[f"the definition {name}"] = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    found = [what for what, path in paths.items() if kube.find(path)]
    if not found:
        return None
    return f"the cluster has {', '.join(found)}: the tests would remove this and all that is in it. Remove it yourself, or use another cluster."


def clean(kube: Kube) -> None:
    """Removes what a module made. One step that fails stops no other; what failed is raised at the end."""
    namespaces = list(dict.fromkeys([*NAMESPACES, *kube.made]))
    failed = []

    def step(run, *args: str) -> str:
        try:
            return run(*args)
        except AssertionError as error:
            failed.append(str(error))
            return ""

    for namespace in namespaces:
        for release in step(kube.helm, "list", "--short", "--namespace", namespace).split():
            step(kube.helm, "uninstall", release, "--namespace", namespace, "--wait", "--timeout", "60s")
    gone = ["--ignore-not-found", "--timeout=120s"]
    # With them goes every object of these kinds; none has a finalizer.
    step(kube.kubectl, "delete", "customresourcedefinitions", *DEFINITIONS, *gone)
    # Where an uninstall failed; the chart's others are in its namespace.
    step(kube.kubectl, "delete", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/part-of=strata", *gone)
    step(kube.kubectl, "delete", "namespaces", *namespaces, *gone)
    if failed:
        raise AssertionError("not all that the tests made could be removed:\n" + "\n".join(failed))
