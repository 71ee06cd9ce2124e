"""The OpenAPI document is true: routes, fields, codes of errors, and what is served of it."""

from __future__ import annotations

import ast
import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
from aiohttp import test_utils, web

from orchestrator.http import fields, images
from orchestrator.http.api_keys import ApiKeys
from orchestrator.http.app import create_app
from orchestrator.http.body import File
from orchestrator.http.errors import ApiError
from orchestrator.http.fields import WRAPPERS, Field, Fields
from orchestrator.http.openapi import PARTS, document, join, operations
from orchestrator.http.options import HttpOptions
from orchestrator.http.references import references
from orchestrator.http.video_fields import REMIX, VIDEO
from orchestrator.jobs import Job, Status
from orchestrator.webhooks import event, event_id, signature
from tests.orchestrator.http.conformance import (
    CODES,
    DOCUMENT,
    Conformance,
    check,
    event_problems,
    schema_problems,
)
from tests.orchestrator.http.service import MemoryService
from triptych_proto.control_pb2 import Generation

ORCHESTRATOR = Path(__file__).parents[3] / "orchestrator"
SCHEMAS = DOCUMENT["components"]["schemas"]
KEY = "k" * 20


def test_the_document_is_valid() -> None:
    openapi_spec_validator.validate(DOCUMENT)


def test_the_files_of_the_document() -> None:
    files = list((ORCHESTRATOR / "http/openapi").iterdir())
    assert {path.name for path in files} == {f"{part}.yaml" for part in PARTS}
    assert all(len(path.read_text().splitlines()) <= 450 for path in files)
    made = {"paths": {"/a": {"get": 1}}}
    join(made, {"paths": {"/a": {"post": 2}}, "tags": []})
    assert made == {"paths": {"/a": {"get": 1, "post": 2}}, "tags": []}
    with pytest.raises(ValueError, match="/paths/a/get twice"):
        join({"paths": {"a": {"get": 1}}}, {"paths": {"a": {"get": 1}}})


def test_examples_are_valid() -> None:
    found = 0
    for _, path, operation in operations(DOCUMENT):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content.get("examples", {}).values():
                found += 1
                assert schema_problems(content["schema"], example["value"]) == [], path
    for example in DOCUMENT["components"]["examples"].values():
        found += 1
        assert schema_problems(SCHEMAS["Video"], example["value"]) == []
    for name, schema in SCHEMAS.items():
        for field, inner in schema.get("properties", {}).items():
            for value in inner.get("examples", ()):
                found += 1
                assert schema_problems(inner, value) == [], (name, field)
    assert found > 50


def test_the_routes_are_those_of_the_router(service: MemoryService) -> None:
    """A GET answers HEAD too, which the document says once for all."""
    served = set()
    for route in create_app(service, HttpOptions()).router.routes():
        assert route.resource is not None
        paths = [route.resource.canonical]
        if "{_}" in paths[0]:  # one route for several words
            (choice,) = re.findall(r"\(\?P<_>([a-z|]+)\)", route.get_info()["pattern"].pattern)
            paths = [paths[0].replace("{_}", word) for word in choice.split("|")]
        served |= {(route.method.lower(), path) for path in paths}
    described = {(method, path) for method, path, _ in operations(DOCUMENT)}
    assert served - {("head", path) for _, path in described} == described
    assert {path for method, path in served if method == "head"} == {
        path for method, path in described if method == "get"
    }


def test_operations_are_told_apart() -> None:
    names = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(set(names)) == len(names) > 20
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for _, path, operation in operations(DOCUMENT):
        assert operation["summary"] and operation["description"] and set(operation["tags"]) <= tags, path


# ---- the fields of requests: one line here for each kind of request

REQUESTS = {
    "VideoRequest": VIDEO,
    "RemixRequest": Fields([VIDEO.known[name] for name in REMIX]),
    "ImageRequest": images.GENERATION,
    "ImageEditRequest": images.EDIT,
}


def properties(name: str) -> dict[str, Any]:
    """Of a schema, but ``a[]``, which is how a form names the several values of ``a``."""
    fields: dict[str, Any] = SCHEMAS[name]["properties"]
    assert {field.removesuffix("[]") for field in fields} <= set(fields)
    return {field: schema for field, schema in fields.items() if not field.endswith("[]")}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema and "$ref" not in schema:
        schema = {**schema, **schema["anyOf"][0]}
    if "$ref" in schema:
        return {**schema, **SCHEMAS[schema["$ref"].rpartition("/")[2]]}
    return schema


@pytest.mark.parametrize("name", REQUESTS)
def test_the_fields_of_a_request(name: str) -> None:
    known = REQUESTS[name]
    assert set(properties(name)) == {*known.known, *known.unsupported, *WRAPPERS}
    assert SCHEMAS[name]["additionalProperties"] is False


FIELDS = [(name, field) for name, known in REQUESTS.items() for field in known.known.values()]


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_a_field(name: str, field: Field) -> None:
    schema = resolved(properties(name)[field.name])
    kinds = {fields.integer: "integer", fields.number: "number", fields.boolean: "boolean"}
    if field.coerce in kinds:
        assert schema["type"] == [kinds[field.coerce], "string", "null"]
    if field.coerce in (fields.integer, fields.number):
        assert (schema["minimum"], schema["maximum"]) == (field.low, field.high)
    if field.coerce is fields.text:
        assert schema["type"] in ("string", ["string", "null"])
    closure = inspect.getclosurevars(field.coerce).nonlocals
    if "allowed" in closure:
        assert schema["enum"] == [*closure["allowed"], None]
    if field.coerce is references:
        assert properties(name)[field.name]["$ref"] == "#/components/schemas/References"
        assert field.parse(File(b"\x89PNG\r\n\x1a\n"))
    assert schema["examples"] and schema["description"]
    for example in schema["examples"]:
        field.parse(example)
    assert "x-refused" not in schema


@pytest.mark.parametrize("name", REQUESTS)
def test_fields_of_other_servers(name: str) -> None:
    known = REQUESTS[name]
    refused = {field: schema for field, schema in properties(name).items() if "x-refused" in schema}
    assert set(refused) == set(known.unsupported)
    for field, schema in refused.items():
        assert schema["x-refused"] == known.unsupported[field].reason
        assert set(map(repr, resolved(schema)["enum"])) == {
            repr(value) for value in ("", False, "false", "False", None, *known.unsupported[field].harmless)
        }


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("seed", "x"),
        ("seed", 1.5),
        ("size", "64"),
        ("prompt", "a\0"),
        ("prompt", 1),
        ("fps", 241),
        ("fps", True),
        ("n", 11),
    ],
)
def test_what_the_schema_refuses_is_refused(name: str, wrong: object) -> None:
    assert schema_problems(SCHEMAS["VideoRequest"], {"prompt": "a", name: wrong})
    with pytest.raises(ApiError) as error:
        VIDEO.parse({name: wrong})
    assert error.value.param == name


def test_the_codes_of_errors() -> None:
    """Those of the source are those of the document."""
    used: set[str] = set()
    for path in [*(ORCHESTRATOR / "http").glob("*.py"), *ORCHESTRATOR.glob("*.py")]:
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in calls:
            if ast.unparse(call.func) == "ApiError":
                given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
                used |= {word for value in given for word in words(value)}
        if path.name == "errors.py":
            assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
            used |= {
                word for node in assigned if "code" in ast.unparse(node.targets[0]) for word in words(node)
            }
        if path.name == "auth.py":
            refusals = [call for call in calls if ast.unparse(call.func) == "_unauthorized"]
            used |= {word for call in refusals for word in words(call.args[1])}
    assert used == set(CODES)
    assert list(CODES) == sorted(CODES)


def words(node: ast.AST) -> set[str]:
    """The codes among the strings of an expression."""
    strings = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
    return {text for text in strings if isinstance(text, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", text)}


def test_the_codes_of_failed_jobs() -> None:
    tree = ast.parse((ORCHESTRATOR / "scheduler.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    used = {word for call in calls if ast.unparse(call.func) == "self._fail" for word in words(call.args[1])}
    assert used == set(SCHEMAS["Video"]["properties"]["error"]["properties"]["code"]["examples"])


def test_a_webhook_is_as_described() -> None:
    described = DOCUMENT["webhooks"]["videoEnded"]["post"]
    job = Job.new("m", Generation())
    for job.status in (Status.COMPLETED, Status.FAILED):
        body = event(job)
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        assert schema_problems(schema, json.loads(body)) == []
    sent = signature(b"s" * 24, event_id(job), 1767225600, body)
    assert set(sent) == {parameter["name"] for parameter in described["parameters"]}
    for parameter in described["parameters"]:
        assert schema_problems(parameter["schema"], sent[parameter["name"]]) == []


# ---- what watches over the replies of all tests


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (web.json_response({"status": "ok"}), ""),
        (web.json_response({"status": "ok"}, status=201), "the document has only 200"),
        (web.json_response({"status": "fine"}), "status"),
        (web.json_response({"status": "ok", "more": 1}), "more"),
        (web.json_response({}), "status"),
        (web.Response(text="ok"), "content type text/plain"),
        (web.json_response({"status": "ok"}, headers={"X-More": "1"}), "header x-more"),
        (web.json_response({"error": "wrong"}, status=500), "error"),
        (
            web.json_response(
                {"error": {"message": "m", "type": "server_error", "param": None, "code": "queue_full"}},
                status=500,
            ),
            "code queue_full is not said to come with 500",
        ),
    ],
)
async def test_a_reply_that_is_not_described_is_noticed(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch, reply: web.Response, problem: str
) -> None:
    """As a client gets it, from a server whose handler is wrong."""

    async def livez(request: web.Request) -> web.Response:
        return reply

    monkeypatch.setattr("orchestrator.http.health.livez", livez)
    conformance = Conformance()
    app = conformance.watch(create_app(service, HttpOptions()))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        assert (await client.get("/livez")).status == reply.status
    assert conformance.replies == {("GET", "/livez", reply.status): 1}
    assert problem in "".join(conformance.problems) and bool(conformance.problems) == bool(problem)


def test_other_replies_that_are_noticed() -> None:
    json_type = {"Content-Type": "application/json", "x-request-id": "a"}
    error = (
        b'{"error": {"message": "m", "type": "invalid_request_error", "param": null, "code": "not_found"}}'
    )
    assert check("GET", None, 404, json_type, error) == []
    assert check("GET", None, 404, {"Content-Type": "text/plain"}, b"no") == ["an error is not JSON"]
    assert check("PUT", None, 405, json_type, error) == ["405 without Allow"]
    assert check("GET", "/v1/nothing", 200, json_type, b"{}") == ["the document has no such path"]
    assert check("DELETE", "/livez", 200, json_type, b"{}") == ["the document has no such operation"]
    assert check("GET", "/livez", 200, {"Content-Type": "application/json"}, None) == [
        "header x-request-id is missing"
    ]
    assert event_problems("deleted", {"id": "a", "object": "video.deleted", "deleted": True}) == []
    assert event_problems("deleted", {"id": "a"}) and event_problems("else", {})


# ---- as served


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_it_is_served(api: test_utils.TestClient, path: str) -> None:
    response = await api.get(path)
    body = await response.read()
    assert response.status == 200 and len(body) > 50_000
    assert response.headers["Cache-Control"] == "no-cache"
    head = await api.head(path)
    assert (head.status, head.headers["ETag"]) == (200, response.headers["ETag"])
    assert int(head.headers["Content-Length"]) == len(body)
    for tag in (response.headers["ETag"], f'"other", W/{response.headers["ETag"]}', "*"):
        again = await api.get(path, headers={"If-None-Match": tag})
        assert (again.status, await again.read()) == (304, b"")
        assert again.headers["ETag"] == response.headers["ETag"]
    assert (await api.get(path, headers={"If-None-Match": '"other"'})).status == 200


async def test_the_document_as_served(api: test_utils.TestClient) -> None:
    response = await api.get("/openapi.json")
    served = await response.json()
    openapi_spec_validator.validate(served)
    assert served["servers"] == [{"url": "/"}]
    assert re.match(r"\d", served["info"]["version"])
    assert served["security"] == []


def test_it_says_what_this_server_does() -> None:
    keys = ApiKeys({KEY: "me"})
    options = HttpOptions(public_url="https://videos.example/base/", api_keys=keys, max_prompt_chars=100)
    made = document(options)
    assert made["servers"] == [{"url": "https://videos.example/base"}]
    assert made["security"] == [{"apiKey": []}]
    assert made["paths"]["/v1/videos/{id}/content"]["get"]["security"] == [{"apiKey": []}, {"signedUrl": []}]
    assert made["paths"]["/v1/peers"]["post"]["security"] == []
    assert made["components"]["schemas"]["Prompt"]["maxLength"] == 100
    assert KEY not in json.dumps(made)
    made = document(HttpOptions(cluster_token="t" * 20, ignore_unknown_fields=True))
    assert made["paths"]["/v1/peers"]["post"]["security"] == [{"clusterToken": []}]
    assert made["paths"]["/v1/videos/{id}/content"]["get"]["security"] == []
    assert all(made["components"]["schemas"][name]["additionalProperties"] for name in REQUESTS)


class Page(HTMLParser):
    """What a page would load, where it leads, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        loading = {"src", "srcset", "poster", "data", "action", "style"} & given.keys()
        handlers = [name for name in given if name.startswith("on")]
        if loading or handlers or tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
            self.loads.append(f"<{tag} {given}>")
        if "href" in given:
            self.links.append(given["href"])
        if "id" in given:
            self.ids.append(given["id"])

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize(
    "options",
    [HttpOptions(), HttpOptions(api_keys=ApiKeys({KEY: "me"}), cluster_token="t" * 20)],
    ids=["open", "keys"],
)
async def test_the_page(api: test_utils.TestClient, options: HttpOptions) -> None:
    response = await api.get("/docs")
    assert response.content_type == "text/html"
    text = await response.text()
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"url\(|@import", text)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"https?:|unsafe|\*", policy)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {link for link in page.links if not link.startswith("#")} <= {
        "openapi.json",
        "https://www.standardwebhooks.com",
    }
    for method, path, operation in operations(DOCUMENT):
        assert operation["operationId"] in page.ids
        assert re.search(rf"{method}\s+{re.escape(path)}\s", page.words), (method, path)
    for word in (*VIDEO.known, *VIDEO.unsupported, *CODES):
        assert word in page.words, word
    assert ("Authorization: Bearer" in page.words) == (options.api_keys is not None)
    assert KEY not in text


async def test_nobody_needs_a_key_for_it(service: MemoryService) -> None:
    app = create_app(service, HttpOptions(api_keys=ApiKeys({KEY: "me"})))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        assert (await client.get("/v1/models")).status == 401
        for path in ("/openapi.json", "/docs"):
            assert (await client.get(path)).status == (await client.head(path)).status == 200
