"""What tiny models of several families are made of."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
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

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VOCABULARY = 256 + len(QWEN_SPECIAL)


CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
CLIP_VOCABULARY = 2 * 256 + len(CLIP_SPECIAL)
T5_SPECIAL = ("<pad>", "</s>", "<unk>")
# Letters make sure that any two prompts differ.
T5_LETTERS = ("▁", *string.ascii_letters, *string.digits, *string.punctuation)
T5_VOCABULARY = len(T5_SPECIAL) + len(T5_LETTERS) + len(WORDS)


def written(
    folder: Path, pipeline: Callable[[], Any], seed: int, defaults: Mapping[str, float] | None = None
) -> Path:
    """Writes the model that ``pipeline`` makes into ``folder`` (made if need be) and returns it.

    Equal seeds give equal weights. ``defaults`` are those of requests to the model (``triptych.json``).
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = pipeline()
    model.save_pretrained(folder)
    if defaults is not None:
        (folder / "triptych.json").write_text(json.dumps(defaults, indent=2) + "\n")
    return folder


def t5_tokenizer() -> Any:
    """T5's kind of tokenizer: whole words are likelier than their letters."""
    from transformers import T5TokenizerFast

    vocabulary = [(token, 0.0) for token in T5_SPECIAL]
    vocabulary += [(letter, -8.0) for letter in T5_LETTERS]
    return T5TokenizerFast(vocab=vocabulary + [("▁" + word, -2.0) for word in WORDS], extra_ids=0)


def clip_tokenizer() -> Any:
    """CLIP's kind of tokenizer, a token for each byte."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *CLIP_SPECIAL]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def qwen_tokenizer() -> Any:
    """Qwen's kind of tokenizer, a token for each byte."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), *QWEN_SPECIAL])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], chat_template=CHATML, additional_special_tokens=list(QWEN_SPECIAL[1:])
    )


def randomised(model: Any) -> Any:
    """Fresh models have parameters that are all zero; with these, whole branches would do nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()
