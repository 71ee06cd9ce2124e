"""A stand-in for a tokenizer that AIPerf would download: small, byte-level BPE, trained on words made here.

AIPerf counts the tokens of prompts, whatever is measured. These counts are not those of the tokenizer whose
name the folder has.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

VOCABULARY = 2048
REVISION = "0" * 40
_SYLLABLES = [consonant + vowel for consonant in "bdklmnr" for vowel in "aeio"]


def sentences(count: int) -> list[str]:
    """The same every time."""
    words = random.Random(0)
    lexicon = ["".join(words.choices(_SYLLABLES, k=words.randint(1, 4))) for _ in range(500)]
    return [f"{' '.join(words.choices(lexicon, k=12)).capitalize()}." for _ in range(count)]


def build(directory: Path) -> Path:
    """A folder that transformers' ``AutoTokenizer`` loads."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(sentences(2000), vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "model_max_length": 1 << 20,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return directory


def seed_cache(home: Path, name: str) -> dict[str, str]:
    """Puts it into a cache of Hugging Face's layout under ``name``; returns the environment that uses it."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    build(repository / "snapshots" / REVISION)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the folder to make, for AIPerf's --tokenizer")
    build(parser.parse_args().directory)
