"""The model under measurement: Wan 2.1 T2V 1.3B as published, but for its weights, which are random."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy import tiny_model
from deploy.tiny.parts import randomised, t5_tokenizer

PROMPT = "a red circle moving right over the sea at night"


@dataclass(frozen=True)
class Work:
    """What is asked of the model, and the tensors that cross for it."""

    width: int
    height: int
    num_frames: int
    steps: int
    text_dim: int = 4096
    fps: float = 16.0
    tokens: int = 512

    def fields(self, seed: int) -> dict[str, Any]:
        """Of ``POST /v1/videos``, with texts that no other seed has: an encoder would remember them."""
        return {
            "seed": seed,
            "prompt": f"{PROMPT} {seed}",
            "negative_prompt": f"rain and snow {seed}",
            "size": f"{self.width}x{self.height}",
            "num_frames": self.num_frames,
            "num_inference_steps": self.steps,
            "guidance_scale": 5.0,
            "fps": self.fps,
        }

    def crossing(self, dtype: torch.dtype, device: torch.device) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors like those of each hop: the text with and against the prompt, and the latents."""
        text = {
            name: torch.randn(1, self.tokens, self.text_dim, dtype=dtype, device=device)
            for name in ("prompt_embeds", "negative_prompt_embeds")
        }
        shape = (1, 16, (self.num_frames - 1) // 4 + 1, self.height // 8, self.width // 8)
        return {"embeddings": text, "latents": {"latents": torch.randn(shape, device=device)}}


FULL = Work(width=832, height=480, num_frames=81, steps=8)
SMALL = Work(width=64, height=64, num_frames=5, steps=2, text_dim=64, fps=8.0)


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> Path:
    """Writes 13.7 GiB in bfloat16; on a GPU the weights are made there, which takes seconds."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    # As the configs of Wan-AI/Wan2.1-T2V-1.3B-Diffusers say; diffusers' own defaults are those of 14B.
    text = UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            text_encoder = randomised(UMT5EncoderModel(text))
            transformer = randomised(
                WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
            )
        finally:
            torch.set_default_dtype(usual)
        vae = randomised(AutoencoderKLWan())  # always in float32
    WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder, max_shard_size="4GB")
    defaults = {"width": FULL.width, "height": FULL.height, "num_frames": FULL.num_frames}
    (folder / "triptych.json").write_text(json.dumps(defaults) + "\n")
    return folder


def build_small(folder: Path) -> Path:
    """The tiny Wan of the tests, for machines without a GPU."""
    return tiny_model.build(folder)
