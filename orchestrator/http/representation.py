"""A job as clients see it: OpenAI's Video object and what we add to it."""

from __future__ import annotations

from typing import Any

from orchestrator.jobs import Job, Status


def representation(job: Job, url: str | None, retention_seconds: float | None) -> dict[str, Any]:
    """OpenAI's Video object, with what SGLang and vLLM-Omni add to it and AIPerf reads.

    ``seconds`` is a string, as in OpenAI's API: the length of the video, which the model's frame counts
    may make a little longer than asked for. ``inference_time_s`` leaves out the time in the queue.
    ``phases`` says in order where the time went; ``stage_durations`` is its sum by name. ``frames_xxh3``
    is a hash of the frames before encoding: equal requests have equal frames. ``step`` and what follows it
    are of the stage that runs, ``seconds_left`` of the whole job.
    """
    generation = job.generation
    facts = job.file or generation
    pace = job.pace if job.status is Status.IN_PROGRESS else None
    phases = job.phases
    durations: dict[str, float] = {}
    for phase in phases:
        durations[phase.name] = durations.get(phase.name, 0.0) + phase.seconds
    video: dict[str, Any] = {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": job.status.value,
        "progress": job.progress,
        "step": pace and pace.step,
        "total_steps": pace and pace.steps,
        "steps_per_second": pace and pace.steps_per_second,
        "seconds_left": pace and pace.seconds_left,
        "priority": job.priority,
        "created_at": int(job.created_at),
        "completed_at": _epoch(job.completed_at),
        "expires_at": _expires_at(job, retention_seconds),
        "deadline": _epoch(job.deadline),
        "prompt": generation.prompt,
        "size": f"{facts.width}x{facts.height}",
        "seconds": f"{facts.num_frames / facts.fps:g}" if facts.fps else "0",
        "num_frames": facts.num_frames,
        "fps": facts.fps,
        "seed": generation.seed,
        "quality": "standard",  # there is one
        "remixed_from_video_id": job.remixed_from,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "phases": [
            {"name": phase.name, "seconds": phase.seconds, **({"url": phase.url} if phase.url else {})}
            for phase in phases
        ],
        "stage_durations": durations,
    }
    if job.status is Status.COMPLETED:
        video["inference_time_s"] = sum(phase.seconds for phase in phases if phase.name != "queue")
        video["peak_memory_mb"] = job.peak_memory_bytes / 2**20
        if job.file is not None:
            video["frames_xxh3"] = f"{job.file.frames_checksum:016x}"
        if url is not None:
            video["url"] = url
    return video


def _expires_at(job: Job, retention_seconds: float | None) -> int | None:
    if job.completed_at is None or retention_seconds is None:
        return None
    return int(job.completed_at + retention_seconds)


def _epoch(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
