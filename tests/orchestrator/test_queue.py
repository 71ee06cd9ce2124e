"""The queue of ready stages: rank, removal, and that its steps do not grow with its length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.queue import StageQueue

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("discard"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
    ),
    max_size=200,
)


@given(STEPS)
def test_it_gives_what_a_sorted_list_would(steps: list[tuple[str, int, int]]) -> None:
    queue: StageQueue[str] = StageQueue()
    model: list[tuple[int, int, str]] = []
    for count, (what, job, rank) in enumerate(steps):
        key = (str(job), "encode")
        if what == "pop" and not model:
            with pytest.raises(IndexError):
                queue.pop()
        elif what == "pop":
            model.sort()
            assert queue.peek() == model[0][2]
            assert queue.pop() == model.pop(0)[2]
        else:
            queue.discard(key)
            model = [entry for entry in model if not entry[2].startswith(f"{job}:")]
            if what == "push":
                queue.push(key, f"{job}:{count}", rank)
                model.append((rank, count, f"{job}:{count}"))
        assert len(queue) == len(model)
        assert {key[0] for key in queue} == {entry[2].split(":")[0] for entry in model}


def test_what_was_taken_out_does_not_pile_up() -> None:
    queue: StageQueue[int] = StageQueue()
    for number in range(10_000):
        queue.push((str(number), "encode"), number, number)
        if number >= 10:
            queue.discard((str(number - 10), "encode"))
    assert len(queue) == 10
    assert len(queue._heap) < 100
    assert queue.pop() == 9_990
