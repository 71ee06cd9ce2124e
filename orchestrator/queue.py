"""The queue of one kind of role: the stages that wait for an instance, by priority and age."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = tuple[str, str]  # job id, stage


class StageQueue(Generic[Item]):
    """A priority queue whose items can be taken out of the middle too; each step costs O(log length).

    An item's rank never changes: a job's rank is the time of its acceptance less some seconds for each level
    of its priority. So a job of low priority waits for those of higher priority that came not too long
    after it, and for no others: nothing starves.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._items: dict[Key, tuple[int, Item]] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Key]:
        """In no particular order."""
        return iter(self._items)

    def push(self, key: Key, item: Item, rank: float) -> None:
        """Lower ranks come first; among equals the earlier pushed."""
        self._pushed += 1
        self._items[key] = (self._pushed, item)
        heapq.heappush(self._heap, (rank, self._pushed, key))

    def peek(self) -> Item:
        """The item that comes first. Raises IndexError if there is none."""
        while True:
            _, number, key = self._heap[0]
            found = self._items.get(key)
            if found is not None and found[0] == number:
                return found[1]
            heapq.heappop(self._heap)  # was taken out, or pushed again since

    def pop(self) -> Item:
        item = self.peek()
        _, _, key = heapq.heappop(self._heap)
        del self._items[key]
        return item

    def discard(self, key: Key) -> None:
        self._items.pop(key, None)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._items):
            self._heap = [entry for entry in self._heap if self._items.get(entry[2], (0,))[0] == entry[1]]
            heapq.heapify(self._heap)
