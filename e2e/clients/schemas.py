"""Twenty JSON schemas, and a check of values against the keywords that they use."""

from __future__ import annotations

import re


def obj(_required=None, **properties) -> dict:
    required = list(properties) if _required is None else _required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def text(most: int = 20) -> dict:
    return {"type": "string", "maxLength": most}


def array(items: dict, least: int = 0, most: int = 3) -> dict:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


WHOLE = {"type": "integer", "minimum": 0, "maximum": 1000}

SCHEMAS = {
    "person": obj(name=text(), age={"type": "integer", "minimum": 0, "maximum": 120}),
    "address": obj(street=text(), city=text(), zip={"type": "string", "pattern": "^[0-9]{5}$"}),
    "flag": obj(on={"type": "boolean"}),
    "price": obj(amount={"type": "number", "minimum": 0, "maximum": 100}, currency={"enum": ["EUR", "USD"]}),
    "list of words": array(text(10), 1, 4),
    "matrix": array(array(WHOLE, 2, 2), 2, 2),
    "date": obj(day={"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"}),
    "nothing": obj(value={"type": "null"}),
    "choice": {"enum": ["red", "green", 3, None, True]},
    "constant": obj(kind={"const": "fixed"}, size=WHOLE),
    "either": {"anyOf": [obj(left=WHOLE), obj(right=text(8))]},
    "optional": obj(_required=["id"], id=WHOLE, note=text(12), done={"type": "boolean"}),
    "nested": obj(outer=obj(inner=obj(leaf=array({"type": "boolean"}, 1, 3)))),
    "order": obj(items=array(obj(sku={"type": "string", "pattern": "^[A-Z]{3}$"}, count=WHOLE), 1, 2), total=WHOLE),
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {"node": obj(name=text(6), children=array({"$ref": "#/$defs/leaf"}, 0, 2)), "leaf": obj(name=text(6))},
    },
    "nullable": obj(value={"type": ["integer", "null"], "minimum": -5, "maximum": 5}),
    "colour": obj(hex={"type": "string", "pattern": "^#[0-9a-f]{6}$"}, alpha={"type": "number", "minimum": 0, "maximum": 1}),
    "weekdays": array({"enum": ["Mon", "Tue", "Wed"]}, 1, 3),
    "letter": {"type": "string", "minLength": 3, "maxLength": 9},
    "number": {"type": "integer", "minimum": 10, "maximum": 99},
}

TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
}


def fits(value, schema: dict, root: dict) -> bool:
    try:
        check(value, schema, root)
    except AssertionError:
        return False
    return True


def check(value, schema: dict, root: dict | None = None) -> None:
    root = root or schema
    if "$ref" in schema:
        return check(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        assert any(fits(value, one, root) for one in schema["anyOf"]), (value, schema)
    if "enum" in schema:
        assert any(type(value) is type(one) and value == one for one in schema["enum"]), (value, schema)
    if "const" in schema:
        assert value == schema["const"], (value, schema)
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(TYPES[kind](value) for kind in kinds), (value, schema)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), (value, schema)
        for name, inner in value.items():
            check(inner, schema["properties"][name], root)
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), (value, schema)
        for inner in value:
            check(inner, schema["items"], root)
    if isinstance(value, str):
        assert schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)), (value, schema)
        assert re.search(schema.get("pattern", ""), value), (value, schema)
    if TYPES["number"](value):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), (value, schema)
