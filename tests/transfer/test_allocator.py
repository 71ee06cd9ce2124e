"""The allocator: ranges never overlap, best fit is kept, and everything coalesces."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transfer.allocator import GRANULARITY, Allocator

UNITS = 64


class AllocatorMachine(RuleBasedStateMachine):
    """Compares the allocator with a plain map of units."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(UNITS * GRANULARITY + 17)
        self.units = [False] * UNITS
        self.taken: dict[int, int] = {}

    def free_runs(self) -> list[tuple[int, int]]:
        text = "".join("x" if taken else " " for taken in self.units)
        runs, start = [], 0
        for word in text.replace("x", "|x|").split("|"):
            if word and word != "x":
                runs.append((len(word), start))
            start += len(word)
        return sorted(runs)

    @rule(nbytes=st.integers(0, 20 * GRANULARITY))
    def allocate(self, nbytes: int) -> None:
        units = max(1, -(-nbytes // GRANULARITY))
        fitting = [run for run in self.free_runs() if run[0] >= units]
        offset = self.allocator.allocate(nbytes)
        if not fitting:
            assert offset is None
            return
        assert offset == fitting[0][1] * GRANULARITY
        first = offset // GRANULARITY
        self.units[first : first + units] = [True] * units
        self.taken[offset] = units

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.taken:
            offset = data.draw(st.sampled_from(sorted(self.taken)))
            units = self.taken.pop(offset)
            self.allocator.free(offset)
            first = offset // GRANULARITY
            self.units[first : first + units] = [False] * units

    @invariant()
    def counts(self) -> None:
        assert self.allocator.free_bytes == self.units.count(False) * GRANULARITY
        assert len(self.allocator) == len(self.taken)

    def teardown(self) -> None:
        for offset in self.taken:
            self.allocator.free(offset)
        assert self.allocator.allocate(UNITS * GRANULARITY) == 0


TestAllocator = AllocatorMachine.TestCase


def test_only_what_is_taken_can_be_freed() -> None:
    allocator = Allocator(4 * GRANULARITY)
    offset = allocator.allocate(1)
    assert offset is not None
    allocator.free(offset)
    with pytest.raises(ValueError, match="offset 0"):
        allocator.free(offset)
    with pytest.raises(ValueError, match="offset 4096"):
        allocator.free(GRANULARITY)
