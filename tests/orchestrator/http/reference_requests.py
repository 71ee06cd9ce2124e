"""Requests with reference images, for the tests of the door."""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import FormData, test_utils

from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import BLUE, GREEN, RED, encoded, picture, png
from triptych_proto.control_pb2 import Model

SENT = png(RED)
JPEG = encoded(picture(GREEN), "JPEG")
WEBP = encoded(picture(BLUE), "WEBP")
VIDEOS = "/v1/videos"


def model(**facts: Any) -> Model:
    changed = Model()
    changed.CopyFrom(MODEL)
    changed.MergeFrom(Model(**{"max_images": 2, **facts}))
    return changed


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def form(*files: tuple[str, bytes], filename: str = "a.png", **fields: str) -> FormData:
    data = FormData({"prompt": "a", **fields}, default_to_multipart=True)
    for name, content in files:
        data.add_field(name, content, filename=filename, content_type="application/octet-stream")
    return data


async def sent(api: test_utils.TestClient, service: MemoryService, **body: Any) -> tuple[bytes, ...]:
    """What was stored with the job; nothing of it is left with the request."""
    response = await api.post(VIDEOS, **body)
    assert response.status == 200, await response.text()
    assert service.references.used == 0
    return service.sent[(await response.json())["id"]]


async def refused(
    api: test_utils.TestClient, service: MemoryService, **body: Any
) -> tuple[int, str | None, str, str]:
    response = await api.post(VIDEOS, **body)
    error = (await response.json())["error"]
    assert not service.table and service.references.used == 0
    return response.status, error["param"], error["code"], error["message"]
