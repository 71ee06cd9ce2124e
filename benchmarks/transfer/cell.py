"""What was measured of one way at one size, and how it is written down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.table import Spread, markdown, number
from benchmarks.transfer.rows import FLOOR, Sample

HEADING = ("size", "by", "put ms", "fetch ms", "sum ms", "p10..p90", "GB/s", "x memcpy")


@dataclass(frozen=True)
class Cell:
    """One way at one size: `total` is the time of the hop, `floor` the median of the memcpys beside it."""

    name: str
    nbytes: int
    rounds: int
    total: Spread  # this and all below in seconds
    put: Spread | None
    fetch: Spread | None
    floor: float

    @classmethod
    def of(cls, name: str, nbytes: int, samples: Sequence[Sample], floor: float) -> "Cell":
        puts = [sample.put for sample in samples if sample.put is not None]
        fetches = [sample.fetch for sample in samples if sample.fetch is not None]
        return cls(
            name,
            nbytes,
            len(samples),
            Spread.of([sample.total for sample in samples]),
            Spread.of(puts) if puts else None,
            Spread.of(fetches) if fetches else None,
            floor,
        )

    def record(self) -> dict[str, Any]:
        """For a line of JSON; seconds, bytes."""
        return {
            "benchmark": "transfer",
            **asdict(self),
            "bytes_per_second": self.nbytes / self.total.median,
            "ratio": self.total.median / self.floor,
        }

    def line(self) -> list[str]:
        total = self.total
        return [
            size_name(self.nbytes),
            self.name,
            _ms(self.put.median) if self.put else "",
            _ms(self.fetch.median) if self.fetch else "",
            _ms(total.median),
            f"{_ms(total.p10)}..{_ms(total.p90)}",
            number(self.nbytes / total.median / 1e9),
            number(total.median / self.floor),
        ]


def table(cells: Sequence[Cell]) -> str:
    return markdown(HEADING, [cell.line() for cell in cells])


def setup_costs(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds that a hop takes whatever its size, by name: that of the smallest tensor, less its memcpy."""
    smallest = min(cell.nbytes for cell in cells)
    return {
        cell.name: cell.total.median - cell.floor
        for cell in cells
        if cell.nbytes == smallest and cell.name != FLOOR
    }


def size_name(nbytes: int) -> str:
    """Decimal units: 1 MB is 1,000,000 bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:g} {unit}"
    return f"{nbytes} B"


def _ms(seconds: float) -> str:
    return number(seconds * 1e3)
