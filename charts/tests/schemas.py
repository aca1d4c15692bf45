"""JSON schemas for kubeconform, from the API server's own OpenAPI and from definitions: no network.

Strict: an object whose members are known takes no others.
"""

import copy
import json
import pathlib
import re
import sys

import yaml
from conftest import K8S, ROOT

sys.path.insert(0, str(ROOT / "e2e/k8s"))

INT_OR_STRING = {"oneOf": [{"type": "integer"}, {"type": "string"}]}
QUANTITY = {"oneOf": [{"type": "number"}, {"type": "string"}]}


def of_openapi(spec: dict) -> dict[str, dict]:
    """By file name: one schema a kind, with every definition that it reaches."""
    definitions = spec["definitions"]
    strict = {name: _strict_v2(name, d) for name, d in definitions.items()}
    found = {}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            found[_file(kind["group"], kind["version"], kind["kind"])] = {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "allOf": [{"$ref": f"#/definitions/{name}"}],
                "definitions": {n: strict[n] for n in _reached(name, definitions)},
            }
    return found


def of_definition(definition: dict) -> dict[str, dict]:
    """The same for a CustomResourceDefinition."""
    found = {}
    group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
    for version in definition["spec"]["versions"]:
        schema = _strict_v3(copy.deepcopy(version["schema"]["openAPIV3Schema"]), root=True)
        found[_file(group, version["name"], kind)] = schema
    return found


def _file(group: str, version: str, kind: str) -> str:
    return f"{kind}-{group.split('.')[0] + '-' if group else ''}{version}.json".lower()


def _reached(start: str, definitions: dict) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += re.findall(r'"#/definitions/([^"]+)"', json.dumps(definitions[name]))
    return seen


def _strict_v2(name: str, definition: dict) -> dict:
    if name.endswith(".intstr.IntOrString"):
        return INT_OR_STRING
    if name.endswith(".resource.Quantity"):
        return QUANTITY
    out = copy.deepcopy(definition)
    if "properties" in out and "additionalProperties" not in out:
        out["additionalProperties"] = False
        if definition.get("x-kubernetes-group-version-kind"):
            for member in ("apiVersion", "kind"):
                out["properties"].setdefault(member, {"type": "string"})
    return out


def _strict_v3(schema: dict, root: bool = False) -> dict:
    if schema.pop("x-kubernetes-int-or-string", False):
        return QUANTITY
    schema.pop("format", None)
    open_ended = schema.pop("x-kubernetes-preserve-unknown-fields", False)
    if schema.pop("nullable", False):
        schema["type"] = [schema["type"], "null"]
    for name, child in schema.get("properties", {}).items():
        # The API server knows what metadata is.
        schema["properties"][name] = {"type": "object"} if root and name == "metadata" else _strict_v3(child)
    if "properties" in schema and "additionalProperties" not in schema and not open_ended:
        schema["additionalProperties"] = False
    for word in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(word), dict):
            schema[word] = _strict_v3(schema[word])
    return schema


def ask_api_server() -> tuple[str, dict]:
    """Starts an API server, and returns its version and its OpenAPI."""
    import cluster as clusters

    started = clusters.Cluster("openapi")
    if started.exists:
        started.down()
    started.up(tier="control-plane", nodes=0)
    try:
        return started.api.get("/version")["gitVersion"], started.api.get("/openapi/v2")
    finally:
        started.down()


def kubernetes() -> pathlib.Path:
    """The folder of schemas of Kubernetes' own kinds, made once for each set of binaries."""
    home = K8S / "schemas"
    stamp = home / "made-for"
    server = (K8S / "bin/kube-apiserver").resolve()
    made_for = f"{server} {server.stat().st_mtime_ns}"
    if not stamp.exists() or stamp.read_text() != made_for:
        home.mkdir(parents=True, exist_ok=True)
        _, spec = ask_api_server()
        write(home, of_openapi(spec))
        stamp.write_text(made_for)
    return home


def of_files(paths: list[pathlib.Path]) -> dict[str, dict]:
    """Schemas of the definitions in files of YAML."""
    found = {}
    for path in paths:
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") == "CustomResourceDefinition":
                found |= of_definition(document)
    return found


def write(folder: pathlib.Path, schemas: dict[str, dict]) -> None:
    for name, schema in schemas.items():
        (folder / name).write_text(json.dumps(schema))
