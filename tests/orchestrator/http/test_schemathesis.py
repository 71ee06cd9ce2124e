"""schemathesis against a server on a socket, with all of its checks: no reply is beside the document.

Twice: with data that the schemas refuse, which the server must refuse too; and with data that they allow,
which it must take. Schemas leave open what depends on the model, so for that they are narrowed.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from orchestrator.http import video_fields
from orchestrator.http.api_keys import ApiKeys
from orchestrator.http.app import create_runner
from orchestrator.http.openapi import document, operations
from orchestrator.http.options import HttpOptions
from orchestrator.http.references import NAMES
from orchestrator.http.request import makes_images
from orchestrator.http.service import VideoService
from orchestrator.jobs import Job
from orchestrator.targets import Targets
from services.media.video import VideoWriter
from tests.cluster import Cluster
from tests.orchestrator.http.conformance import DOCUMENT, Conformance
from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import BLUE, png
from triptych_proto.control_pb2 import Generation, Model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis needs Python 3.11"
)

TOKEN = "t" * 20
IMAGE = "data:image/png;base64," + base64.b64encode(png(BLUE)).decode()
OPTIONS_OF_MODELS = [field.name for field in video_fields.OPTIONS]
KEY = {"$ref": "#/components/parameters/IdempotencyKey"}
HOOK = "https://hooks.example/videos"
OPTIONS = HttpOptions(
    cluster_token=TOKEN,
    api_keys=ApiKeys({"k" * 20: "me"}),
    webhook_targets=Targets(["hooks.example"], "--webhook-allow"),
)

# The reply to allowed data may also be that a range is outside the file.
CONFIG = """
[[operations]]
include-operation-id = "videoContent"
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", 401, 404, 416]
"""
UNSERVED = {("post", f"/v1/videos/{word}") for word in ("edits", "extensions", "characters")}


def made_from(model: Model, **facts: Any) -> Model:
    made = Model(options=OPTIONS_OF_MODELS, max_images=1)
    made.MergeFrom(model)
    made.MergeFrom(Model(**facts))
    return made


VIDEOS = made_from(MODEL, formats=["mp4", "webm"])
IMAGES = made_from(
    MODEL, output="image", formats=["jpeg", "webp"], max_frames=1, defaults=Generation(num_frames=1)
)


class PromptService(MemoryService):
    """Every video or image is there at once."""

    video = b""

    def __init__(self, previews: Path, model: Model = VIDEOS) -> None:
        super().__init__(previews)
        self.served = [model]

    async def submit(self, *args: Any, **fields: Any) -> Job:
        job = await super().submit(*args, **fields)
        if not job.status.final:
            self.complete(job, self.video)
            if job.file is not None and makes_images(self.served[0]):
                job.file.content_type = "image/jpeg"
        return job


class FullService(PromptService):
    """There is a video at every id: nothing hides behind a 404."""

    async def find(self, job_id: str) -> Job | None:
        return await super().find(job_id) or await self.submit(MODEL.name, MODEL.defaults)


def described() -> dict[str, Any]:
    """The document without the fields that are only known to be refused: other tests have each of them."""
    made = document(OPTIONS)
    for schema in made["components"]["schemas"].values():
        fields = schema.get("properties", {})
        for name in [name for name, field in fields.items() if "x-refused" in field]:
            del fields[name]
    return made


def narrowed(document: dict[str, Any], model: Model) -> dict[str, Any]:
    """What a server of ``model`` takes of what the document allows, in any encoding: forms have no null."""
    defaults = model.defaults
    for name in ("VideoRequest", "RemixRequest", "ImageRequest", "ImageEditRequest"):
        for field in document["components"]["schemas"][name]["properties"].values():
            if isinstance(field.get("type"), list):
                ranged = "minimum" in field  # which a pattern of its text cannot say
                unwanted = {"null", "string"} if ranged else {"null"}
                field["type"] = [kind for kind in field["type"] if kind not in unwanted]
            if "enum" in field:
                field["enum"] = [value for value in field["enum"] if value is not None]
            if "object" in field.get("type", ()):
                field.update(type="object", additionalProperties=False)
    prompt = {"type": "string", "pattern": "^[ -~]{0,20}[!-~][ -~]{0,20}$"}
    ends = {"webhook_url": {"enum": [HOOK]}, "timeout": {"type": "number", "minimum": 1, "maximum": 60}}
    schemas = document["components"]["schemas"]
    common = {
        "prompt": prompt,
        "negative_prompt": prompt,
        "model": {"enum": [model.name]},
        "size": {"enum": [f"{defaults.width}x{defaults.height}"]},
        "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": min(model.max_steps, 4)},
        **ends,
    }
    schemas["VideoRequest"]["properties"] |= {
        **common,
        "width": {"enum": [defaults.width]},
        "height": {"enum": [defaults.height]},
        "num_frames": {"enum": [defaults.num_frames]},
        "fps": {"enum": [defaults.fps]},
        "seconds": {"enum": [defaults.num_frames / defaults.fps]},
        "n": {"enum": [1]},  # others are not for /v1/videos/sync
        "num_outputs_per_prompt": {"enum": [1]},
    }
    only_images = {
        "n": {"type": "integer", "minimum": 1, "maximum": 2},
        "background": {"enum": ["auto", "opaque"]},
        "stream": {"enum": [False, "false"]},
        "partial_images": {"enum": [0, "0"]},
    }
    for name in ("ImageRequest", "ImageEditRequest"):
        schemas[name]["properties"] |= {**common, **only_images}
        del schemas[name]["properties"]["webhook_url"]
    for name, image in (
        ("VideoRequest", "input_reference"),
        ("ImageRequest", ""),
        ("ImageEditRequest", "image"),
    ):
        narrow_what_models_have(schemas[name], image, model)
    schemas["RemixRequest"]["properties"] |= {"prompt": prompt, **ends}
    for name in ("Announcement", "DrainRequest"):
        schemas[name]["properties"]["url"] = {"enum": ["grpc://127.0.0.1:1"]}
    (after,) = [one for one in document["paths"]["/v1/videos"]["get"]["parameters"] if one["name"] == "after"]
    document["paths"]["/v1/videos"]["get"]["parameters"].remove(after)  # an id; those of links are enough
    for path in list(document["paths"]):
        if path.startswith("/v1/images/") != makes_images(model):
            del document["paths"][path]
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            response.get("links", {}).pop("listAfter", None)
        parameters = operation.get("parameters", [])
        if KEY in parameters:  # that two requests have one is not what is asked here
            parameters.remove(KEY)
    return document


def narrow_what_models_have(schema: dict[str, Any], image: str, model: Model) -> None:
    """``image`` is the one field for reference images that is sent, and always; empty: there is none."""
    fields, required = schema["properties"], ["prompt"]
    unwanted = {name for name in fields if name in NAMES or name.endswith("[]")}
    unwanted |= set(OPTIONS_OF_MODELS) - set(model.options)
    if image and model.max_images:
        fields[image] = {"enum": [IMAGE]}
        required, unwanted = ["prompt", image], unwanted - {image}
    else:
        unwanted.add("strength")
    if model.formats:
        fields["output_format"] = {"enum": list(model.formats)}
    else:
        unwanted.add("output_format")
    if not makes_images(model):
        unwanted.add("output_compression")
    schema.update(
        required=required, properties={name: field for name, field in fields.items() if name not in unwanted}
    )
    schema.pop("anyOf", None)


@asynccontextmanager
async def serving(service: VideoService, conformance: Conformance) -> AsyncIterator[str]:
    runner = create_runner(service, OPTIONS)
    conformance.watch(runner.app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0])
    await runner.cleanup()


async def schemathesis(folder: Path, document: dict[str, Any], url: str, *options: str) -> str:
    """Its output. Fails the test if it found anything, or did nothing."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    (folder / "openapi.json").write_text(json.dumps(document))
    arguments = [
        *("--url", url),
        *("--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", "all"),
        "--generation-deterministic",  # the same cases each time
        *("--suppress-health-check", "filter_too_much,too_slow"),
        *("--request-timeout", "20"),
        "--no-color",
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", *arguments, *options),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "NO_PROXY": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    assert re.search(r"\b[0-9]{2,} generated, [0-9]+ passed", output), output
    return output


def prepared(service: PromptService, folder: Path) -> PromptService:
    defaults = MODEL.defaults
    with VideoWriter(folder / "a.mp4", defaults.width, defaults.height, defaults.fps) as writer:
        writer.write(np.zeros((defaults.num_frames, defaults.height, defaults.width, 3), np.uint8))
        writer.finish()
    service.video = (folder / "a.mp4").read_bytes()
    return service


async def test_what_is_not_allowed(tmp_path: Path, conformance: Conformance) -> None:
    service = prepared(FullService(tmp_path / "previews"), tmp_path)
    asked = described()
    del asked["components"]["parameters"]["VideoId"]["schema"]["pattern"]  # or no id would be a good one
    async with serving(service, conformance) as url:
        await schemathesis(tmp_path, asked, url, "--mode", "negative", "--phases", "coverage")
    refused = {(method.lower(), path) for method, path, status in conformance.replies if status == 400}
    bodies = {(method, path) for method, path, one in operations(DOCUMENT) if "requestBody" in one}
    assert refused >= bodies


async def test_what_is_allowed(tmp_path: Path, conformance: Conformance) -> None:
    service = prepared(PromptService(tmp_path / "previews"), tmp_path)
    allowed = narrowed(described(), VIDEOS)
    async with serving(service, conformance) as url:
        await schemathesis(tmp_path, allowed, url, "--mode", "positive", "--max-examples", "4")
    assert taken(conformance) == {(method, path) for method, path, _ in operations(allowed)} - UNSERVED


async def test_images_that_are_allowed(tmp_path: Path, conformance: Conformance) -> None:
    service = PromptService(tmp_path / "previews", IMAGES)
    allowed = narrowed(described(), IMAGES)
    async with serving(service, conformance) as url:
        options = ("--phases", "coverage,fuzzing", "--max-examples", "4")
        await schemathesis(tmp_path, allowed, url, "--mode", "positive", *options)
    assert taken(conformance) == {(method, path) for method, path, _ in operations(allowed)}


async def test_with_roles(tmp_path: Path, conformance: Conformance) -> None:
    """The orchestrator itself over an emulated model: create, follow, fetch, remix and delete, by links."""
    async with Cluster(tmp_path) as cluster:
        (model,) = cluster.orchestrator.models()
        allowed = narrowed(described(), model)
        async with serving(cluster.orchestrator, conformance) as url:
            phases = ("--phases", "stateful", "--max-examples", "12")
            await schemathesis(tmp_path, allowed, url, "--mode", "positive", *phases)
        await cluster.slots_back()
    assert taken(conformance) >= {
        ("post", "/v1/videos"),
        ("post", "/v1/videos/sync"),
        ("get", "/v1/videos"),
        ("get", "/v1/videos/{id}"),
        ("get", "/v1/videos/{id}/content"),
        ("post", "/v1/videos/{id}/remix"),
        ("delete", "/v1/videos/{id}"),
    }


def taken(conformance: Conformance) -> set[tuple[str, str | None]]:
    """The operations that were answered with what was asked for."""
    return {(method.lower(), path) for method, path, status in conformance.replies if status < 300}
