"""A tiny Wan text-to-video model with random weights: an ordinary diffusers folder for demos and tests.

Its videos are coloured noise, but every component, file and tensor is of the kind that the 14B model has.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import torch

# fmt: off
WORDS = (
    "a", "an", "and", "at", "big", "black", "blue", "bright", "camera", "cat", "circle", "city",
    "close", "dark", "day", "dog", "field", "fire", "flying", "forest", "from", "green", "in",
    "jumping", "large", "left", "light", "moon", "mountain", "moving", "night", "of", "on", "over",
    "rain", "red", "right", "river", "running", "sea", "sky", "slow", "small", "snow", "square",
    "star", "sun", "the", "through", "to", "tree", "under", "water", "white", "wind", "with",
    "yellow",
)
# fmt: on
SERVING_DEFAULTS = {
    "width": 128,
    "height": 128,
    "num_frames": 17,
    "fps": 8,
    "num_inference_steps": 10,
    "guidance_scale": 5.0,
}
TEXT_DIM = 64
# Factors on random weights: with them frames use the range of colours, and another prompt is another video.
CONTRAST = 3.0
PROMPT_STRENGTH = 24.0


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the model into ``folder`` (made if need be) and returns it. Equal seeds give equal weights."""
    from diffusers import WanPipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = WanPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            transformer=_transformer(),
            vae=_vae(),
            scheduler=_scheduler(),
        )
    pipeline.save_pretrained(folder)
    (folder / "triptych.json").write_text(json.dumps(SERVING_DEFAULTS, indent=2) + "\n")
    return folder


def _vocabulary() -> list[tuple[str, float]]:
    """Whole words are likelier than their letters; letters make sure that any two prompts differ."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -8.0) for letter in "▁" + string.ascii_letters + string.digits + string.punctuation]
    return special + letters + [("▁" + word, -2.0) for word in WORDS]


def _tokenizer() -> Any:
    from transformers import T5TokenizerFast

    return T5TokenizerFast(vocab=_vocabulary(), extra_ids=0)


def _text_encoder() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(_vocabulary()),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return _randomised(UMT5EncoderModel(config))


def _transformer() -> Any:
    from diffusers import WanTransformer3DModel

    transformer = _randomised(
        WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            text_dim=TEXT_DIM,
            freq_dim=64,
            ffn_dim=256,
            num_layers=8,
        )
    )
    with torch.no_grad():
        for block in transformer.blocks:
            block.attn2.to_out[0].weight.mul_(PROMPT_STRENGTH)
    return transformer


def _vae() -> Any:
    from diffusers import AutoencoderKLWan

    vae = _randomised(AutoencoderKLWan(base_dim=12, num_res_blocks=1))
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(CONTRAST)
        vae.decoder.conv_out.bias.zero_()
    return vae


def _scheduler() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _randomised(model: Any) -> Any:
    """Fresh models have parameters that are all zero; with these, whole branches would do nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.tiny_model", description=build.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    print(build(args.folder, args.seed))


if __name__ == "__main__":
    main()
