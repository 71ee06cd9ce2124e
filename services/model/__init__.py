"""Models as the roles see them: each role opens its own part of one."""

from __future__ import annotations

from services.media.formats import formats_of
from services.model.base import EMBEDDING_CACHE_BYTES, Limits, ModelError, RoleModel
from services.model.emulated import EmulatedModel
from services.model.folder import open_folder
from services.model_source import EMULATED
from services.role import Role

__all__ = ["ModelError", "open_model"]


def open_model(
    role: Role,
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
    max_pixels: int | None = Limits.max_pixels,
    max_frames: int = Limits.max_frames,
    max_steps: int = Limits.max_steps,
    threads: int | None = None,
    embedding_cache: int = EMBEDDING_CACHE_BYTES,
) -> RoleModel:
    """Loads what ``role`` needs of a diffusers folder, a hub id, or an ``emulated:`` model.

    ``threads`` sets torch's count for the whole process; ``embedding_cache`` bounds in bytes what an encoder
    keeps of the texts it has encoded, 0 keeps nothing. Raises ModelError: no diffusers folder, missing
    weights, unknown family, device or dtype not available.
    """
    limits = Limits(max_pixels, max_frames, max_steps)
    if model.startswith(EMULATED):
        return EmulatedModel(role, model, limits, name)
    folder = open_folder(model)
    # diffusers and transformers take seconds to import, and only real models need them.
    from services.model.loading import load

    opened = load(
        role,
        folder,
        device=device,
        dtype=dtype,
        name=name,
        limits=limits,
        threads=threads,
        embedding_cache=embedding_cache,
    )
    if not opened.facts.formats:
        opened.facts.formats.extend(formats_of(opened.facts))
    return opened
