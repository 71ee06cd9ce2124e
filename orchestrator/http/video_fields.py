"""The fields of a video request, and those of other servers that no model here can honour."""

from __future__ import annotations

from orchestrator.http.fields import (
    MAX_UINT32,
    MAX_UINT64,
    Field,
    Fields,
    Unsupported,
    integer,
    number,
    size,
    text,
)
from orchestrator.http.references import NAMES as REFERENCES
from orchestrator.http.references import references

_VIDEOS = "no model served here takes a video"
_QUALITY = "the file's quality is fixed"
_CACHING = "no step of a model is skipped"
_AFTERWARDS = "nothing is done to the frames after decoding"
_LORA = "no model served here takes a LoRA"
_PATHS = "the server neither reads nor writes files that a client names"
_PROFILE = "a request cannot profile the server"
_STREAM = "a video is not streamed while it is made"

# Named as in Generation; a model says in its options which of them it has.
OPTIONS = (
    Field("guidance_scale_2", number, 0, 100),
    Field("true_cfg_scale", number, 0, 100),
    Field("flow_shift", number, 0.001, 1000),
    Field("max_sequence_length", integer, 1, 65536),
    Field("strength", number, 0, 1),
)
COUNT = (
    Field("n", integer, 1, 10),
    Field("num_outputs_per_prompt", integer, 1, 10),
)  # the same, by two names
FILE = (Field("output_format", text), Field("output_compression", integer, 0, 100))

VIDEO = Fields(
    (
        Field("prompt", text),
        Field("negative_prompt", text),
        Field("model", text),
        Field("size", size),
        Field("width", integer, 1, MAX_UINT32),
        Field("height", integer, 1, MAX_UINT32),
        Field("seconds", number, 0.001, 3600),
        Field("fps", number, 1, 240),
        Field("num_frames", integer, 1, MAX_UINT32),
        Field("num_inference_steps", integer, 1, MAX_UINT32),
        Field("guidance_scale", number, 0, 100),
        *OPTIONS,
        *(Field(name, references) for name in REFERENCES),
        *FILE,
        *COUNT,
        Field("seed", integer, 0, MAX_UINT64),
        Field("priority", integer, -10, 10),
        Field("timeout", number, 1, 86400),
        Field("webhook_url", text),
        Field("user", text),  # OpenAI's tag of an end user: accepted, and of no effect
    ),
    (
        Unsupported("video", _VIDEOS),
        Unsupported("video_reference", _VIDEOS),
        Unsupported("video_url", _VIDEOS),
        Unsupported("source_video", _VIDEOS),
        Unsupported("quality", _QUALITY, ("auto", "standard")),
        Unsupported("output_quality", _QUALITY, ("default",)),
        Unsupported("enable_teacache", _CACHING),
        Unsupported("cache_dit_params", _CACHING),
        Unsupported("enable_frame_interpolation", _AFTERWARDS),
        Unsupported("enable_upscaling", _AFTERWARDS),
        Unsupported("lora", _LORA),
        Unsupported("video_path", _PATHS),
        Unsupported("output_path", _PATHS),
        Unsupported("perf_dump_path", _PATHS),
        Unsupported("profile", _PROFILE),
        Unsupported("stream", _STREAM),
    ),
)

REMIX = (
    "prompt",
    "seed",
    "priority",
    "timeout",
    "webhook_url",
    "user",
)  # what a remix may say; the rest is its source's
