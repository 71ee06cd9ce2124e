"""Prompts of the demo model: their grammar, and how they are cut into words."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import AutoTokenizer

from deploy.training import scenes, words
from deploy.training.denoiser import END, LONGEST, PAD


def test_a_tokenizer_read_back_knows_words_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    words.tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, END)
    tokens = tokenizer("A RED circle: right-moving, upon zebra!").input_ids
    expected = ["a", "red", "circle", "right", "moving", words.UNKNOWN, words.UNKNOWN, words.END]
    assert tokenizer.convert_ids_to_tokens(tokens) == expected
    assert tokenizer("", padding="max_length", max_length=3).input_ids == [END, PAD, PAD]


def test_captions_say_their_meaning_in_known_words_and_strange_ones() -> None:
    chance = random.Random(0)
    tokenizer = words.tokenizer()
    strange = 0
    for meaning in scenes.MEANINGS * 5:
        text = words.caption(meaning, words.ORDERS, chance)
        assert meaning.colour in text.replace(",", "").split()
        tokens = tokenizer(text).input_ids
        assert len(tokens) <= LONGEST, text
        unknown = [word for word in text.replace(",", "").split() if tokenizer(word).input_ids[0] == 2]
        assert all(any(letter.isdigit() for letter in word) for word in unknown), text
        strange += bool(unknown)
    assert 0 < strange < 5 * len(scenes.MEANINGS)


def test_what_is_not_said_is_dark_and_still() -> None:
    chance = random.Random(1)
    for meaning in scenes.MEANINGS:
        texts = [words.caption(meaning, words.TRAINING_ORDERS, chance) for _ in range(40)]
        silent = [text for text in texts if "dark" not in text and "light" not in text]
        assert bool(silent) == (meaning.ground == "dark")


def test_unseen_prompts_are_of_held_out_combinations() -> None:
    unseen = words.unseen_captions(seed=0)
    assert len(unseen) == 60 and len({text for _, text in unseen}) > 55
    assert all(scenes.held_out(meaning) for meaning, _ in unseen)
    assert unseen == words.unseen_captions(seed=0)
    assert not set(words.HELD_OUT_ORDERS) & set(words.TRAINING_ORDERS)
