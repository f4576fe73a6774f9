"""Writes the catalog as an AsyncAPI 3 document (`docs/events.yaml`)."""

from __future__ import annotations

from typing import Any

import yaml
from marshmallow import Schema, fields, validate

from shared.events.catalog import MAX_BYTES, TOPICS, TYPES, EventType, Topic
from shared.events.fields import Instant

_JSON = "https://json-schema.org/draft/2020-12/schema"


def document() -> dict[str, Any]:
    """The whole catalog as AsyncAPI 3.0.0."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Hearback events",
            "version": "1",
            "description": (
                "Facts on the log. Events of one topic and key arrive in the order in which they were "
                "appended; between topics and keys there is no order. "
                "Each may arrive more than once, always with the same "
                f"`id`. A value is JSON in UTF-8 of at most {MAX_BYTES // 1024} kB. Topics are kept 14 days; "
                "compacted ones keep each key's last record. "
                "A reader ignores types and fields it does not know."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS.values()},
        "operations": {
            f"publish.{topic.name}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "summary": f"{topic.publisher.capitalize()} publishes {topic.name}.",
            }
            for topic in TOPICS.values()
        },
        "components": {
            "messages": {kind.name: _message(kind) for kind in TYPES.values()},
            "schemas": {name: _object(schema) for name, schema in sorted(_schemas().items())},
            "messageTraits": {"event": {"headers": _HEADERS}},
        },
    }


def text() -> str:
    """The document as YAML, with a line on where it comes from."""
    body = yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=110)
    return f"# Made from shared/events by `hearback log asyncapi`; a test keeps it true.\n{body}"


_HEADERS: dict[str, Any] = {
    "$schema": _JSON,
    "type": "object",
    "required": ["id", "type", "version", "occurred_at"],
    "properties": {
        "id": {
            "type": "string",
            "format": "uuid",
            "description": "Follows from topic, aggregate and version; to be applied once.",
        },
        "type": {"type": "string"},
        "version": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "The aggregate's; a reader ignores a lower or equal one.",
        },
        "occurred_at": {"type": "string", "format": "date-time"},
        "day": {"type": "string", "format": "date", "description": "The real date of the append."},
        "replay": {
            "const": "1",
            "description": "Current state published again: fills replicas, opens no task, sends nothing.",
        },
        "traceparent": {"type": "string", "description": "W3C trace context."},
    },
}


def _channel(topic: Topic) -> dict[str, Any]:
    kinds = [kind for kind in TYPES.values() if kind.topic is topic]
    return {
        "address": topic.name,
        "description": f"{topic.summary} Key: {topic.key}. Published by {topic.publisher}.",
        "messages": {kind.name: {"$ref": f"#/components/messages/{kind.name}"} for kind in kinds},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {"cleanup.policy": ["compact" if topic.compacted else "delete"]},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _message(kind: EventType) -> dict[str, Any]:
    payload: dict[str, Any] = {"$ref": f"#/components/schemas/{_name(kind.schema)}"}
    if kind.name == "customer.changed":
        payload = {"oneOf": [payload, {"type": "null", "description": "The customer was erased."}]}
    return {
        "name": kind.name,
        "summary": kind.summary,
        "traits": [{"$ref": "#/components/messageTraits/event"}],
        "payload": payload,
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": "0.5.0"}},
    }


def _schemas() -> dict[str, Schema]:
    found: dict[str, Schema] = {}

    def add(schema: Schema) -> None:
        found[_name(schema)] = schema
        for field in schema.fields.values():
            inner = field.inner if isinstance(field, fields.List) else field
            if isinstance(inner, fields.Nested):
                add(inner.schema)

    for kind in TYPES.values():
        add(kind.schema)
    return found


def _name(schema: Schema) -> str:
    return type(schema).__name__


def _object(schema: Schema) -> dict[str, Any]:
    return {
        "type": "object",
        "description": (type(schema).__doc__ or "").strip(),
        "required": [name for name, field in schema.fields.items() if field.required],
        "properties": {name: _field(field) for name, field in schema.fields.items()},
    }


def _field(field: Any) -> dict[str, Any]:
    shape = _shape(field)
    for rule in field.validators:
        shape |= _rule(rule)
    if not field.allow_none:
        return shape
    if "$ref" in shape:
        return {"oneOf": [shape, {"type": "null"}]}
    if "enum" in shape:
        shape["enum"] = [*shape["enum"], None]
    return {**shape, "type": [shape["type"], "null"]}


def _shape(field: Any) -> dict[str, Any]:
    match field:
        case fields.Nested():
            return {"$ref": f"#/components/schemas/{_name(field.schema)}"}
        case fields.List():
            return {"type": "array", "items": _field(field.inner)}
        case fields.Dict():
            shape: dict[str, Any] = {"type": "object"}
            if field.key_field is not None and field.key_field.validators:
                shape["propertyNames"] = _field(field.key_field)
            if field.value_field is not None:
                shape["additionalProperties"] = _field(field.value_field)
            return shape
        case fields.UUID():
            return {"type": "string", "format": "uuid"}
        case Instant():
            return {"type": "string", "format": "date-time"}
        case fields.Boolean():
            return {"type": "boolean"}
        case fields.Integer():
            return {"type": "integer"}
        case fields.String():
            return {"type": "string"}
    raise TypeError(f"no JSON Schema is known for {type(field).__name__}")


def _rule(rule: Any) -> dict[str, Any]:
    match rule:
        case validate.OneOf():
            return {"enum": list(rule.choices)}
        case validate.Regexp():
            return {"pattern": rule.regex.pattern}
        case validate.Range():
            bounds = {"minimum": rule.min, "maximum": rule.max}
            return {name: value for name, value in bounds.items() if value is not None}
        case validate.Length(equal=int(size)):
            return {"minItems": size, "maxItems": size}
    return {}
