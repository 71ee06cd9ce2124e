"""Which tiny models there are: one for each family that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.tiny import flux, flux2, hunyuan, ltx2, qwen, wan, zimage

# By the family's name: writes the model into a folder, from a seed, and returns the folder.
MODELS: Mapping[str, Callable[[Path, int], Path]] = {
    "wan": wan.build,
    "wan2.2": wan.build_two_transformers,
    "wan-i2v": wan.build_from_image,
    "wan2.2-i2v": wan.build_from_image_two_transformers,
    "wan2.2-ti2v": wan.build_text_and_image,
    "flux": flux.build,
    "flux-schnell": flux.build_schnell,
    "flux2-klein": flux2.build,
    "flux2-klein-base": flux2.build_base,
    "qwen-image": qwen.build,
    "z-image": zimage.build,
    "z-image-turbo": zimage.build_turbo,
    "hunyuan-video-1.5": hunyuan.build,
    "hunyuan-video-1.5-i2v": hunyuan.build_from_image,
    "ltx-2": ltx2.build,
    "ltx-2.3": ltx2.build_projecting,
}
