"""``/v1/videos``: create, list, retrieve and delete, in the shape of OpenAI's videos API."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from orchestrator.http.body import read_fields
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.health import not_ready
from orchestrator.http.request import parse_request
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.jobs import Job, Status

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


async def create(request: web.Request) -> web.Response:
    service, options = request.app[SERVICE], request.app[OPTIONS]
    fields = await read_fields(request, options)
    models = service.models()
    if not models:
        raise not_ready("no role has introduced itself yet, so no model is known")
    model, generation = parse_request(fields, models, max_prompt_chars=options.max_prompt_chars)
    job = await service.submit(model.name, generation)
    return web.json_response(representation(job, base_url(request)))


async def list_videos(request: web.Request) -> web.Response:
    """A page of jobs: ``limit`` (1-100), ``order`` (asc or desc by age), ``after`` (the last id seen)."""
    query = request.query
    limit = _limit(query.get("limit", str(DEFAULT_LIMIT)))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "order must be asc or desc")
    jobs = request.app[SERVICE].jobs()
    if order == "desc":
        jobs = jobs[::-1]
    start = _index_of(query["after"], jobs) + 1 if "after" in query else 0
    page = [representation(job, base_url(request)) for job in jobs[start : start + limit]]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + limit < len(jobs),
        }
    )


async def retrieve(request: web.Request) -> web.Response:
    """A failed job is a 200 too: clients take any other status for a failed poll, and give up."""
    return web.json_response(representation(find_job(request), base_url(request)))


async def delete(request: web.Request) -> web.Response:
    job_id = request.match_info["id"]
    if not await request.app[SERVICE].delete(job_id):
        raise _no_such_video(job_id)
    return web.json_response({"id": job_id, "object": "video.deleted", "deleted": True})


def find_job(request: web.Request) -> Job:
    """The job that the path names. Raises ApiError, 404."""
    job_id = request.match_info["id"]
    job = request.app[SERVICE].job(job_id)
    if job is None:
        raise _no_such_video(job_id)
    return job


def base_url(request: web.Request) -> str | None:
    """Where this client reaches the server; None if neither an option nor the request says so."""
    public_url = request.app[OPTIONS].public_url
    if public_url is not None:
        return public_url.rstrip("/")
    # Not request.host: without the header that asks DNS for this machine's name, and blocks.
    host = request.headers.get("Host")
    return f"{request.scheme}://{host}" if host else None


def representation(job: Job, base_url: str | None) -> dict[str, Any]:
    """OpenAI's Video object, with what SGLang and vLLM-Omni add to it and AIPerf reads.

    ``seconds`` is a string, as in OpenAI's API: the length of the video, which the model's frame counts
    may make a little longer than asked for. ``inference_time_s`` leaves out the time in the queue.
    ``phases`` says in order where the time went; ``stage_durations`` is its sum by name. ``frames_xxh3``
    is a hash of the frames before encoding: equal requests have equal frames.
    """
    generation = job.generation
    facts = job.file or generation
    video: dict[str, Any] = {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": job.status.value,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": None,
        "prompt": generation.prompt,
        "size": f"{facts.width}x{facts.height}",
        "seconds": f"{facts.num_frames / facts.fps:g}" if facts.fps else "0",
        "num_frames": facts.num_frames,
        "fps": facts.fps,
        "seed": generation.seed,
        "remixed_from_video_id": None,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "phases": [
            {"name": phase.name, "seconds": phase.seconds, **({"url": phase.url} if phase.url else {})}
            for phase in job.phases
        ],
        "stage_durations": _durations(job),
    }
    if job.status is Status.COMPLETED:
        video["inference_time_s"] = sum(phase.seconds for phase in job.phases if phase.name != "queue")
        video["peak_memory_mb"] = job.peak_memory_bytes / 2**20
        if job.file is not None:
            video["frames_xxh3"] = f"{job.file.frames_checksum:016x}"
        if base_url is not None:
            video["url"] = f"{base_url}/v1/videos/{job.id}/content"
    return video


def _durations(job: Job) -> dict[str, float]:
    durations: dict[str, float] = {}
    for phase in job.phases:
        durations[phase.name] = durations.get(phase.name, 0.0) + phase.seconds
    return durations


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    raise invalid("limit", f"limit must be an integer from 1 to {MAX_LIMIT}")


def _index_of(job_id: str, jobs: Any) -> int:
    for index, job in enumerate(jobs):
        if job.id == job_id:
            return index
    raise invalid("after", f"after: there is no video {job_id[:128]!r}")


def _no_such_video(job_id: str) -> ApiError:
    return ApiError(404, f"there is no video {job_id[:128]!r}", code="video_not_found", param="id")
