"""Holds the replies of an application against the OpenAPI document: status, headers, body, events."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import jsonschema_rs
from aiohttp import web

from orchestrator.http.openapi import document
from orchestrator.http.options import HttpOptions

DOCUMENT = document(HttpOptions())
CODES = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["x-codes"]

# Of HTTP itself, of CORS, and of the server's software.
_UNSAID = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding", "vary"}
_BASE = "urn:openapi"


class Conformance:
    """Watches applications; ``problems`` are all that their replies had which the document does not say."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.replies: Counter[tuple[str, str | None, int]] = Counter()  # by method, path and status

    def watch(self, app: web.Application) -> web.Application:
        """Before the application starts. Returns it."""
        app.on_response_prepare.append(self._hear)
        return app

    async def _hear(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.transport is None or request.transport.is_closing():
            return  # nobody gets it
        body = response.body if isinstance(response, web.Response) and request.method != "HEAD" else None
        assert body is None or isinstance(body, bytes)
        resource = request.match_info.route.resource
        path = None if resource is None else resource.canonical
        if path == "/v1/videos/{_}":
            path = request.path
        self.replies[request.method, path, response.status] += 1
        found = check(request.method, path, response.status, response.headers, body)
        self.problems += [f"{request.method} {request.path} -> {response.status}: {one}" for one in found]


def check(
    method: str, path: str | None, status: int, headers: Mapping[str, str], body: bytes | None
) -> list[str]:
    """What is wrong with a reply. ``path`` is as in the document, None if no route was found; ``body`` None
    where it is not known.
    """
    if method == "OPTIONS" and status == 204:
        return []  # CORS, before the API
    item = DOCUMENT["paths"].get(path)
    if item is None:
        if path is not None or status not in (401, 404, 405):
            return ["the document has no such path"]
        return _error_problems(status, headers, body)
    operation = item.get("get" if method == "HEAD" else method.lower())
    if operation is None:
        return ["the document has no such operation"]
    response = operation["responses"].get(str(status))
    if response is None:
        return [f"the document has only {', '.join(operation['responses'])}"]
    response = _resolve(response)
    problems = _header_problems(response.get("headers", {}), headers)
    kind = headers.get("Content-Type", "").partition(";")[0]
    content = response.get("content", {})
    if not content:
        return problems + ([f"a body of {len(body)} bytes is not said"] if body else [])
    if kind not in content:
        return [*problems, f"content type {kind} is not said"]
    if status >= 400:
        return problems + _error_problems(status, headers, body)
    if kind == "application/json" and body is not None:
        problems += schema_problems(content[kind]["schema"], json.loads(body))
    return problems


def event_problems(kind: str, data: Any) -> list[str]:
    """What is wrong with a server-sent event."""
    responses = DOCUMENT["paths"]["/v1/videos/{id}/events"]["get"]["responses"]
    schema = _resolve(responses["200"]["content"]["text/event-stream"]["schema"])["properties"]
    return schema_problems(schema["event"], kind) + schema_problems(schema["data"]["contentSchema"], data)


def schema_problems(schema: Mapping[str, Any], value: Any, *, closed: bool = True) -> list[str]:
    """``closed``: an object has no key that its schema does not name, though clients must expect some."""
    validator = _validator(json.dumps(schema), closed)
    return [f"{list(error.instance_path)}: {error.message[:300]}" for error in validator.iter_errors(value)]


def _error_problems(status: int, headers: Mapping[str, str], body: bytes | None) -> list[str]:
    if headers.get("Content-Type", "").partition(";")[0] != "application/json":
        return ["an error is not JSON"]
    if status == 405 and "Allow" not in headers:
        return ["405 without Allow"]
    if body is None:
        return []
    value = json.loads(body)
    if problems := schema_problems({"$ref": "#/components/schemas/Error"}, value):
        return problems
    code = value["error"]["code"]
    if status not in CODES.get(code, {"statuses": ()})["statuses"]:
        return [f"code {code} is not said to come with {status}"]
    return []


def _header_problems(said: Mapping[str, Any], headers: Mapping[str, str]) -> list[str]:
    problems = []
    names = {name.lower() for name in said}
    for name in {name.lower() for name in headers} - names - _UNSAID:
        if not name.startswith("access-control-"):
            problems.append(f"header {name} is not said")
    for name, header in said.items():
        header = _resolve(header)
        if name in headers:
            problems += [f"header {name}: {one}" for one in _text_problems(header["schema"], headers[name])]
        elif header.get("required"):
            problems.append(f"header {name} is missing")
    return problems


def _text_problems(schema: Mapping[str, Any], text: str) -> list[str]:
    """A header is text, which stands for what its schema says."""
    try:
        value = json.loads(text) if schema.get("type") in ("integer", "number") else text
    except ValueError:
        return [f"{text!r} is not a number"]
    return schema_problems(schema, value)


def _resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


@lru_cache
def _registry(closed: bool) -> jsonschema_rs.Registry:
    contents = {"$schema": "https://json-schema.org/draft/2020-12/schema", **DOCUMENT}
    return jsonschema_rs.Registry([(_BASE, _closed(contents) if closed else contents)])


@cache
def _validator(schema: str, closed: bool) -> jsonschema_rs.Draft202012Validator:
    parsed = json.loads(schema.replace('"#/', f'"{_BASE}#/'))
    return jsonschema_rs.Draft202012Validator(
        _closed(parsed) if closed else parsed, registry=_registry(closed), validate_formats=True
    )


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _closed(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made
