"""``/openapi.json`` and ``/docs``: what this server takes and answers, for programs and for people."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata, resources
from typing import Any

import yaml
from aiohttp import web

from orchestrator.http import docs_page
from orchestrator.http.options import HttpOptions
from orchestrator.http.service import OPTIONS

METHODS = ("get", "put", "post", "delete", "patch")
# The files of the folder openapi, in the order in which the page shows what they describe.
PARTS = ("info", "videos", "following", "images", "cluster", "server", "requests", "replies", "common")
SHARED = "x-shared"  # has a file's YAML anchors, and is no part of the document

_PAGE_HEADERS = {
    "Content-Security-Policy": docs_page.CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
}


async def openapi(request: web.Request) -> web.Response:
    text = await asyncio.to_thread(_json, *_facts(request.app[OPTIONS]))
    return _cached(request, text, "application/json", {})


async def docs(request: web.Request) -> web.Response:
    page = await asyncio.to_thread(_page, *_facts(request.app[OPTIONS]))
    return _cached(request, page, "text/html", _PAGE_HEADERS)


def document(options: HttpOptions) -> dict[str, Any]:
    """The OpenAPI document, as it is true of a server with these options."""
    return _document(*_facts(options))


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method in lower case, path and description of each operation."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def _facts(options: HttpOptions) -> tuple[str, bool, bool, int, bool]:
    """What the document depends on; never a secret."""
    return (
        (options.public_url or "").rstrip("/") or "/",
        options.api_keys is not None,
        options.cluster_token is not None,
        options.max_prompt_chars,
        options.ignore_unknown_fields,
    )


def _document(url: str, keys: bool, token: bool, max_prompt: int, ignore_unknown: bool) -> dict[str, Any]:
    made = copy.deepcopy(_source())  # also takes apart what YAML's aliases share
    made["info"]["version"] = _version()
    made["servers"] = [{"url": url}]
    asked = {"apiKey": keys, "signedUrl": keys, "clusterToken": token}
    for holder in (made, *(operation for _, _, operation in operations(made))):
        if "security" in holder:
            holder["security"] = [way for way in holder["security"] if all(asked[name] for name in way)]
    schemas = made["components"]["schemas"]
    schemas["Prompt"]["maxLength"] = max_prompt
    if ignore_unknown:
        for name in ("VideoRequest", "RemixRequest", "ImageRequest", "ImageEditRequest"):
            schemas[name]["additionalProperties"] = True
    return made


@lru_cache(maxsize=1)
def _source() -> dict[str, Any]:
    folder, made = resources.files(__package__).joinpath("openapi"), dict[str, Any]()
    for part in PARTS:
        text = folder.joinpath(f"{part}.yaml").read_bytes()
        loaded: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        loaded.pop(SHARED, None)
        join(made, loaded)
    return made


def join(made: dict[str, Any], part: Mapping[str, Any], place: str = "") -> None:
    """Adds ``part`` to ``made``. Raises ValueError for what both have, objects aside."""
    for key, value in part.items():
        if key not in made:
            made[key] = value
        elif isinstance(value, dict) and isinstance(made[key], dict):
            join(made[key], value, f"{place}/{key}")
        else:
            raise ValueError(f"the OpenAPI document has {place}/{key} twice")


@lru_cache(maxsize=8)
def _json(*facts: Any) -> bytes:
    return json.dumps(_document(*facts), ensure_ascii=False).encode()


@lru_cache(maxsize=8)
def _page(*facts: Any) -> bytes:
    return docs_page.render(_document(*facts)).encode()


def _cached(request: web.Request, body: bytes, kind: str, headers: Mapping[str, str]) -> web.Response:
    """Clients may keep it, and ask each time whether it is still so: a restart can change it."""
    etag = hashlib.sha256(body).hexdigest()[:32]
    cached = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
    if any(tag.value in (etag, "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=cached)
    return web.Response(body=body, content_type=kind, charset="utf-8", headers={**headers, **cached})


def _version() -> str:
    try:
        return metadata.version("triptych")
    except metadata.PackageNotFoundError:  # run from a tree that is not installed
        return "0"
