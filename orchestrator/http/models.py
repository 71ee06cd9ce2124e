"""``/v1/models``: what is served, with the limits that a request must keep."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from orchestrator.http.request import default_options, find_model
from orchestrator.http.service import SERVICE
from triptych_proto.control_pb2 import Model


async def list_models(request: web.Request) -> web.Response:
    models = request.app[SERVICE].models()
    return web.json_response({"object": "list", "data": [_representation(model) for model in models]})


async def retrieve_model(request: web.Request) -> web.Response:
    model = find_model(request.match_info["model"], request.app[SERVICE].models())
    return web.json_response(_representation(model))


def _representation(model: Model) -> dict[str, Any]:
    """OpenAI's model object, and the facts against which requests are checked."""
    defaults = model.defaults
    return {
        "id": model.name,
        "object": "model",
        "created": 0,  # not known of a model folder, and required by OpenAI's clients
        "owned_by": "triptych",
        "family": model.family,
        "output": model.output or "video",
        "formats": list(model.formats),
        "sound": model.sound,
        "min_images": model.min_images,
        "max_images": model.max_images,
        "options": list(model.options),
        "spatial_multiple": model.spatial_multiple,
        "temporal_multiple": model.temporal_multiple,
        "max_pixels": model.max_pixels,
        "max_frames": model.max_frames,
        "max_steps": model.max_steps,
        "negative_prompt": model.negative_prompt,
        "defaults": {
            "size": f"{defaults.width}x{defaults.height}",
            "num_frames": defaults.num_frames,
            "fps": defaults.fps,
            "num_inference_steps": defaults.num_inference_steps,
            "guidance_scale": defaults.guidance_scale,
            "negative_prompt": defaults.negative_prompt,
            **default_options(model),
        },
    }
