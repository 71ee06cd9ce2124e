"""What prompts say: the grammar of captions, and the tokenizer that knows its words."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from deploy.training.scenes import COLOURS, GROUNDS, HELD_OUT, MEANINGS, Meaning

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

# A caption has a phrase for each property that it tells, in any order.
Order = tuple[str, ...]
ORDERS: tuple[Order, ...] = tuple(permutations(Meaning._fields))
HELD_OUT_ORDERS: tuple[Order, ...] = (
    ("shape", "motion", "colour", "ground"),
    ("motion", "colour", "ground", "shape"),
    ("ground", "shape", "motion", "colour"),
    ("colour", "motion", "ground", "shape"),
    ("motion", "ground", "shape", "colour"),
    ("ground", "motion", "colour", "shape"),
)
TRAINING_ORDERS = tuple(order for order in ORDERS if order not in HELD_OUT_ORDERS)
USUAL_ORDER: Order = ("colour", "shape", "motion", "ground")

SHAPE_NAMES = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
}
WAYS = {
    "left": ("left", "leftwards", "to the left", "towards the left"),
    "right": ("right", "rightwards", "to the right", "towards the right"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
STILL = ("still", "standing still", "motionless", "not moving", "at rest", "it is still")
VERBS = ("moving", "moves", "going", "goes", "gliding", "drifting", "sliding", "flying", "travelling")
GROUND_FORMS = (
    "on {} ground",
    "on a {} ground",
    "on a {} background",
    "over {} ground",
    "{} background",
    "{}",
)
ARTICLES = ("a", "the", "one")
FILLERS = (
    "and",
    "is",
    "it",
    "that",
    "which",
    "in",
    "of",
    "with",
    "very",
    "there",
    "slowly",
    "please",
    "video",
)

# Chances, of a caption.
USUAL = 0.3
DARK_UNSAID = 0.5  # a prompt that names no ground means the dark one,
STILL_UNSAID = 0.2  # and one that names no motion means none
OPEN = 0.04  # it leaves colour or shape open; in training only
FILLED = 0.4
STRANGE = 0.3  # it has words that nobody knows


def caption(meaning: Meaning, orders: Sequence[Order], chance: random.Random) -> str:
    """A prompt that only a scene of that meaning fits, in one of ``orders``."""
    usual = USUAL_ORDER in orders and chance.random() < USUAL
    said = list(USUAL_ORDER if usual else chance.choice(orders))
    if meaning.ground == "dark" and chance.random() < DARK_UNSAID:
        said.remove("ground")
    if meaning.motion == "still" and chance.random() < STILL_UNSAID:
        said.remove("motion")
    return phrase(meaning, said, chance)


def training_caption(meaning: Meaning, chance: random.Random) -> str:
    """A prompt in one of the orders for training; some leave more open."""
    if chance.random() < OPEN:
        left = chance.choice(("colour", "shape"))
        said = [name for name in chance.choice(TRAINING_ORDERS) if name != left]
        return phrase(meaning, said, chance)
    return caption(meaning, TRAINING_ORDERS, chance)


def unseen_captions(seed: int) -> list[tuple[Meaning, str]]:
    """Two prompts for each combination that is held out: one in training's orders, one in held out ones."""
    chance = random.Random(seed)
    kinds = (TRAINING_ORDERS, HELD_OUT_ORDERS)
    meanings = [MEANINGS[index] for index in HELD_OUT]
    return [(meaning, caption(meaning, orders, chance)) for orders in kinds for meaning in meanings]


def phrase(meaning: Meaning, order: Sequence[str], chance: random.Random) -> str:
    """A prompt that tells the properties in ``order``, with small words and strange ones in between."""
    parts = [_told(name, meaning, chance) for name in order]
    if chance.random() < 0.5:
        parts[0] = f"{chance.choice(ARTICLES)} {parts[0]}"
    if chance.random() < FILLED:
        for _ in range(chance.randint(1, 3)):
            parts.insert(chance.randint(0, len(parts)), chance.choice(FILLERS))
    if chance.random() < STRANGE:
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            parts.insert(chance.randint(0, len(parts)), _strange(chance))
    return chance.choice((" ", " ", ", ")).join(parts)


def tokenizer() -> Any:
    """A ``PreTrainedTokenizerFast`` of whole words: case and punctuation mean nothing, other words are
    ``<unk>``, and ``</s>`` ends a text, as with UMT5's.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase, Replace, Sequence
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((PAD, END, UNKNOWN, *_words()))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = Sequence([Lowercase(), Replace(Regex(r"[^\w\s]+"), " ")])
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=512
    )


def _told(name: str, meaning: Meaning, chance: random.Random) -> str:
    if name == "colour":
        return chance.choice(("{}", "{}", "{} coloured", "in {}")).format(meaning.colour)
    if name == "shape":
        noun = chance.choice(SHAPE_NAMES[meaning.shape])
        return chance.choice((noun, noun, f"a {noun}", f"the {noun}"))
    if name == "ground":
        return chance.choice(GROUND_FORMS).format(meaning.ground)
    if meaning.motion == "still":
        return chance.choice(STILL)
    way = chance.choice(WAYS[meaning.motion])
    return chance.choice((way, f"{chance.choice(VERBS)} {way}", f"{chance.choice(VERBS)} {way}"))


def _strange(chance: random.Random) -> str:
    """A word that is in no vocabulary: it has a digit in it."""
    letters = "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 7)))
    return f"{letters}{chance.choice(string.digits)}"


def _words() -> list[str]:
    nouns = [noun for names in SHAPE_NAMES.values() for noun in names]
    ways = [way for names in WAYS.values() for way in names]
    forms = [form.format("") for form in GROUND_FORMS]
    texts = [*COLOURS, *GROUNDS, *nouns, *ways, *STILL, *VERBS, *forms, *ARTICLES, *FILLERS, "coloured"]
    return sorted({word for text in texts for word in text.split()})
