"""The kinds of role, in the order in which a request visits them."""

from __future__ import annotations

import enum


class Role(str, enum.Enum):
    """A part of the pipeline that is deployed on its own."""

    ENCODER = "encoder"  # prompt (and reference media) to embeddings
    DENOISER = "denoiser"  # embeddings and noise to latents
    DECODER = "decoder"  # latents to a media file
