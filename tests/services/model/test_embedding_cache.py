"""The cache of text embeddings by itself: its bound, its order, its keys, and whose memory is whose."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.model.embedding_cache import EmbeddingCache, Key, key_of


def floats(count: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((count,), float(value))


def look(cache: EmbeddingCache, key: Key, value: Any) -> tuple[bool, Any]:
    """Whether it was a hit, and what came."""
    computed = []

    def compute() -> Any:
        computed.append(True)
        return value

    found = cache.computed(key, compute)
    return not computed, found


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 400),
    texts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 60)), max_size=60),
)
def test_is_the_last_used_that_fit(limit: int, texts: list[tuple[int, int]]) -> None:
    """Held against a list: of each text the same output each time, of all together no more than the limit."""
    cache, expected = EmbeddingCache(limit), OrderedDict[int, int]()
    hits = evictions = 0
    sizes = dict(texts)  # of a text the same each time
    for number, _ in texts:
        key = key_of(number)
        nbytes = key[1] + 4 * sizes[number]
        hit, found = look(cache, key, floats(sizes[number], number))
        assert torch.equal(found, floats(sizes[number], number))
        assert hit == (number in expected)
        hits += hit
        if hit:
            expected.move_to_end(number)
        elif nbytes <= limit:
            while sum(expected.values()) + nbytes > limit:
                expected.popitem(last=False)
                evictions += 1
            expected[number] = nbytes
        stats = cache.stats()
        assert stats.bytes == sum(expected.values()) <= stats.limit_bytes == limit
        assert (stats.entries, stats.evictions) == (len(expected), evictions)
        assert stats.hits == hits
        assert number in expected or nbytes > limit, "the latest stays"
    assert cache.stats().hits + cache.stats().misses == len(texts)


def test_one_that_is_larger_than_all_drives_nobody_out() -> None:
    cache = EmbeddingCache(100)
    look(cache, key_of("small"), floats(10))
    for _ in range(2):
        hit, found = look(cache, key_of("large"), floats(1000))
        assert not hit and torch.equal(found, floats(1000))
    assert look(cache, key_of("small"), floats(10))[0] is True
    assert cache.stats().evictions == 0


def test_keys_count_as_well() -> None:
    cache = EmbeddingCache(100)
    look(cache, key_of("x" * 90), floats(1))
    assert cache.stats().bytes == 94
    look(cache, key_of(torch.zeros(97, dtype=torch.uint8)), floats(1))
    assert cache.stats().entries == 1, "the second is larger than all"


IDS = torch.tensor([[5, 6, 0]])
BASE: dict[str, Any] = {
    "component": "text_encoder",
    "ids": IDS,
    "mask": torch.tensor([[1, 1, 0]]),
    "hidden": True,
    "scale": 0.0,
    "text": "a",
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "none": None,
    "list": ["a", "b"],
    "nested": {"a": (1, 2)},
}
CHANGES: list[tuple[str, Any]] = [
    ("component", "text_encoder_2"),
    ("ids", torch.tensor([[5, 7, 0]])),
    ("ids", torch.tensor([[5, 6, 0, 0]])),
    ("ids", torch.tensor([5, 6, 0])),
    ("ids", IDS.int()),
    ("ids", IDS.double()),
    ("ids", IDS.tolist()),
    ("mask", torch.tensor([[1, 1, 1]])),
    ("mask", torch.tensor([[True, True, False]])),
    ("mask", None),
    ("hidden", False),
    ("hidden", 1),
    ("scale", -0.0),
    ("scale", 0),
    ("scale", False),
    ("text", "b"),
    ("text", ["a"]),
    ("dtype", torch.bfloat16),
    ("device", torch.device("cuda")),
    ("none", 0),
    ("none", ""),
    ("list", ["ab"]),
    ("list", ("a", "b")),
    ("list", ["b", "a"]),
    ("nested", {"a": (1, 3)}),
    ("nested", {"b": (1, 2)}),
]


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_each_argument_is_in_the_key(name: str, value: Any) -> None:
    changed = {**BASE, name: value}
    assert key_of(changed)[0] != key_of(BASE)[0]
    cache = EmbeddingCache(1 << 20)
    look(cache, key_of(BASE), floats(1))
    assert look(cache, key_of(changed), floats(1))[0] is False


def test_each_argument_of_the_base_is_changed() -> None:
    assert BASE.keys() == {name for name, _ in CHANGES}
    without = [{k: v for k, v in BASE.items() if k != name} for name in BASE]
    assert len({key_of(arguments)[0] for arguments in [BASE, *without]}) == len(BASE) + 1


def test_equal_arguments_have_equal_keys() -> None:
    again = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in reversed(BASE.items())}
    assert key_of(again) == key_of(BASE)
    assert key_of(IDS.repeat(1, 2)[:, :3]) == key_of(IDS), "a view of other memory"
    assert key_of(0.5) == key_of(0.5)


def test_what_has_no_key_is_refused() -> None:
    with pytest.raises(TypeError, match="a object has no key"):
        key_of({"ids": object()})


def test_nobody_else_sees_the_memory_of_an_entry() -> None:
    cache, key = EmbeddingCache(1 << 20), key_of("a")
    strided = torch.arange(12.0).reshape(3, 4).T
    expected = strided.clone()
    made = {"kind": int, "states": (None, strided), "list": [floats(2)], "view": floats(1000)[:2]}
    assert look(cache, key, made)[1] is made
    assert cache.stats().bytes == 48 + 8 + 8 + 1, "of a view no more than is seen"
    for _ in range(3):
        strided.fill_(-1.0)
        made["list"][0].zero_()  # type: ignore[index]
        hit, found = look(cache, key, {})
        assert hit and found["kind"] is int and found["states"][0] is None
        assert torch.equal(found["states"][1], expected) and found["states"][1].stride() == expected.stride()
        assert torch.equal(found["list"][0], floats(2)) and torch.equal(found["view"], floats(2))
        strided, made = found["states"][1], found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_bits_come_back_as_they_were(dtype: torch.dtype) -> None:
    cache = EmbeddingCache(1 << 20)
    value = torch.tensor([float("nan"), -0.0, 1e-40, float("inf")]).to(dtype)
    look(cache, key_of(1), value)
    hit, found = look(cache, key_of(1), None)
    assert hit and found.dtype == dtype
    assert bytes(found.view(torch.uint8).numpy()) == bytes(value.view(torch.uint8).numpy())


def test_a_failure_leaves_nothing_behind() -> None:
    cache = EmbeddingCache(1 << 20)
    with pytest.raises(ZeroDivisionError):
        cache.computed(key_of("a"), lambda: 1 / 0)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (0, 1, 0, 0)
    assert look(cache, key_of("a"), floats(1))[0] is False


def test_threads_see_whole_entries_and_the_bound() -> None:
    """Runs are one at a time, statistics are not; and nothing breaks where runs are not either."""
    cache, wrong = EmbeddingCache(40 * 10), []
    done = threading.Event()

    def work(seed: int) -> None:
        for step in range(400):
            number = (seed * 7 + step * 13) % 23
            found = look(cache, key_of(number), floats(20, number))[1]
            if not torch.equal(found, floats(20, number)):
                wrong.append(number)
            found.fill_(-1.0)

    def watch() -> None:
        while not done.is_set():
            stats = cache.stats()
            if stats.bytes > stats.limit_bytes or stats.bytes != stats.entries * 80:
                wrong.append(stats)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (*workers, watcher):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    watcher.join()
    assert not wrong
    assert cache.stats().hits + cache.stats().misses == 1600
