"""Volumes on a machine without a provisioner: folders of the cluster, as PersistentVolumes."""

from __future__ import annotations

import os
import pathlib
import shutil

from .errors import ClusterError

MODEL = pathlib.Path.home() / ".cache/strata/models/SmolLM2-135M-Instruct.Q4_1.gguf"
CLAIM = "models"
FREE = 8
# The user that Strata's pods run as: a folder of the host keeps its owner whatever fsGroup says.
USER = 65532


def _volume(name: str, folder: pathlib.Path, modes: list[str], claim: dict | None = None) -> dict:
    spec = {
        "capacity": {"storage": "10Gi"},
        "accessModes": modes,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(folder), "type": "Directory"},
        "storageClassName": "",
    }
    if claim:
        spec["claimRef"] = claim
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def _own(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(folder, USER, USER)


def free_volumes(cluster, count: int = FREE) -> None:
    """Adds volumes that any claim without a class may bind."""
    taken = {v["metadata"]["name"] for v in cluster.api.get("/api/v1/persistentvolumes")["items"]}
    number = 0
    while count:
        number += 1
        name = f"free-{number}"
        if name not in taken:
            folder = cluster.state / "volumes" / name
            _own(folder)
            cluster.api.create("/api/v1/persistentvolumes", _volume(name, folder, ["ReadWriteOnce", "ReadWriteMany"]))
            count -= 1


def models_claim(cluster, namespace: str, model: pathlib.Path) -> None:
    """Makes the claim `models` in a namespace, with the model's file in it."""
    model = pathlib.Path(model)
    if not model.exists():
        raise ClusterError(f"there is no model at {model}: fetch it with `make model`")
    folder = cluster.state / "volumes" / "models"
    _own(folder)
    if not (folder / model.name).exists():
        # Copied: what the cache has may be a link to a place that the pods do not see.
        shutil.copyfile(model, folder / model.name)
        (folder / model.name).chmod(0o644)
    api = cluster.api
    api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": CLAIM}
    api.create("/api/v1/persistentvolumes", _volume(f"models-{namespace}", folder, ["ReadOnlyMany", "ReadWriteMany"], claim))
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "",
        "volumeName": f"models-{namespace}",
    }
    api.create(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", {"metadata": {"name": CLAIM}, "spec": spec})


def provide(cluster, namespace: str, model: pathlib.Path) -> None:
    models_claim(cluster, namespace, model)
    free_volumes(cluster)
