"""How much memory reference images may take up, of bodies that arrive and of jobs that are not over."""

from __future__ import annotations

from types import TracebackType

from orchestrator.http.errors import ApiError

RETRY_SECONDS = 5


class ReferenceMemory:
    """A count of bytes with a limit. Whoever keeps images has a share of it as long as they are kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def share(self) -> Share:
        return Share(self)


class Share:
    """What one holder takes up; nothing at first. As a context manager it is given back at the end."""

    def __init__(self, memory: ReferenceMemory) -> None:
        self.nbytes = 0
        self._memory = memory

    def grow(self, nbytes: int, *, forced: bool = False) -> None:
        """Takes ``nbytes`` more. Raises ApiError, 429, when there is no room, unless it is ``forced``: what a
        job that was accepted needs is there already.
        """
        if not forced and self._memory.used + nbytes > self._memory.limit:
            raise ApiError(
                429,
                "the reference images of other requests take up all the memory there is for them",
                code="references_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self.nbytes += nbytes
        self._memory.used += nbytes

    def give_back(self) -> None:
        """All of it. Can be repeated."""
        self._memory.used -= self.nbytes
        self.nbytes = 0

    def handed_on(self) -> Share:
        """All of it, as another's: nothing is left here to be given back."""
        other = Share(self._memory)
        other.nbytes, self.nbytes = self.nbytes, 0
        return other

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()
