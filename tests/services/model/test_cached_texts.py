"""A text that was encoded before costs nothing, and what is handed on is the same to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.tiny.table import MODELS
from services.model import open_model
from services.model.base import CacheStats, Value
from services.model.families import FAMILIES
from services.role import Role
from tests.services.model.cases import NEGATIVE, Case
from tests.services.model.support import OPTIONS, Recorder, Roles, generation
from tests.services.model.test_families import CASES, images_of

ROWS = {family.name: family for family in FAMILIES}


class Encoder:
    """An encoder, and how often layers of its text encoders have computed."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.model: Any = open_model(Role.ENCODER, str(folder), **OPTIONS, **options)
        self.computed = 0
        components = self.model.pipeline.components
        for name in ROWS[self.model.facts.family].texts or ("text_encoder", "connectors"):
            for layer in components[name].modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.computed += 1

    def run(self, case: Case, **fields: Any) -> tuple[dict[str, Value], int]:
        """What is handed on, and how often layers computed for it."""
        before = self.computed
        request = generation(**{**case.fields, **fields})
        values = self.model.run(request, {}, Recorder(), images_of(case))
        return values, self.computed - before

    def stats(self) -> CacheStats:
        stats: CacheStats | None = self.model.cache_stats()
        assert stats is not None
        return stats


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[family](tmp_path_factory.mktemp("model") / family, 0)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Encoder:
    return Encoder(folder, embedding_cache=0)


def test_every_case_of_a_family_twice(family: str, folder: Path, plain: Encoder) -> None:
    cached = Encoder(folder)
    for case in CASES[family].all:
        expected, computed = plain.run(case)
        assert computed > 0
        found, _ = cached.run(case)
        assert same(found, expected), case.name
    before = cached.stats()
    for case in CASES[family].all:
        for _ in range(2):
            found, computed = cached.run(case)
            assert computed == 0, case.name
            assert same(found, plain.run(case)[0]), case.name
            spoil(found)  # whoever changes what he was given changes no other's
    after = cached.stats()
    assert after.hits > before.hits
    assert (after.misses, after.entries, after.bytes, after.evictions) == (
        before.misses,
        before.entries,
        before.bytes,
        0,
    )


def test_texts_are_shared_between_prompts(family: str, folder: Path, plain: Encoder) -> None:
    row, case, cached = ROWS[family], CASES[family].base, Encoder(folder)
    negative = NEGATIVE if row.negative_prompt else {}
    cached.run(case, prompt="a blue square", **negative)
    expected, all_of_it = plain.run(case, prompt="a green square", **negative)
    found, computed = cached.run(case, prompt="a green square", **negative)
    assert same(found, expected)
    # Where both go through a model together they are remembered together.
    shared = bool(row.texts) and any(
        name.startswith("negative_") and value is not None for name, value in expected.items()
    )
    assert computed == (all_of_it // 2 if shared else all_of_it)
    if shared and negative:
        swapped = {"prompt": NEGATIVE["negative_prompt"], "negative_prompt": "a blue square"}
        found, computed = cached.run(case, **swapped)
        assert computed == 0
        assert same(found, plain.run(case, **swapped)[0])


def test_only_what_is_read_is_kept(family: str, folder: Path) -> None:
    row, encoder = ROWS[family], Encoder(folder)
    encoder.run(CASES[family].base)
    if not row.texts:
        assert encoder.stats().bytes < 2 * encoder.model.largest_output_bytes()
        return
    for name, part in row.texts.items():
        module = encoder.model.pipeline.components[name]
        output = module(input_ids=torch.tensor([[1, 2]]), output_hidden_states=isinstance(part, tuple))
        if isinstance(part, str):
            assert list(output) == [part]
        else:
            assert list(output) == ["hidden_states"]
            assert sum(state is not None for state in output.hidden_states) == len(part)


def test_many_prompts_stay_within_the_bound(tmp_path: Path) -> None:
    folder, case = MODELS["wan"](tmp_path / "wan", 0), CASES["wan"].base
    one = Encoder(folder)
    one.run(case)
    entry = one.stats().bytes // 2  # prompt and negative prompt
    cached = Encoder(folder, embedding_cache=4 * entry + 1)
    for number in range(12):
        cached.run(case, prompt=f"number {number}")
        assert cached.stats().bytes <= 4 * entry + 1
    stats = cached.stats()
    assert (stats.entries, stats.evictions) == (4, 9)
    assert (stats.hits, stats.misses) == (11, 13), "the negative prompt that all have in common stays"
    assert cached.run(case, prompt="number 11")[1] == 0
    assert cached.run(case, prompt="number 0")[1] > 0


def test_nothing_is_kept_without_room(tmp_path: Path) -> None:
    folder, case = MODELS["wan"](tmp_path / "wan", 0), CASES["wan"].base
    without, narrow = Encoder(folder, embedding_cache=0), Encoder(folder, embedding_cache=1)
    assert without.run(case)[1] == without.run(case)[1] == narrow.run(case)[1] == narrow.run(case)[1] > 0
    assert without.model.cache_stats() is None
    stats = narrow.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (0, 4, 0, 0)


def test_only_encoders_have_a_cache(roles: Roles) -> None:
    assert roles.encoder.cache_stats() is not None
    assert roles.denoiser.cache_stats() is None
    assert roles.decoder.cache_stats() is None


def same(values: Any, others: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return values.dtype == others.dtype and torch.equal(values, others)
    if isinstance(values, Mapping):
        return values.keys() == others.keys() and all(same(values[name], others[name]) for name in values)
    if isinstance(values, (list, tuple)):
        return len(values) == len(others) and all(map(same, values, others))
    return bool(values == others)


def spoil(values: Any) -> None:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, torch.Tensor):
            value.zero_()
        elif isinstance(value, (list, tuple, Mapping)):
            spoil(value)
