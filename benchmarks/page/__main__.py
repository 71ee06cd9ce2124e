"""`python -m benchmarks.page`: puts the tables of docs/benchmarks/*.jsonl into docs/benchmarks.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import kill
from benchmarks.floor import rows as floor
from benchmarks.machine import ROOT
from benchmarks.page import goals
from benchmarks.page.results import cell, records, report
from benchmarks.peers import overhead
from benchmarks.row import Report
from benchmarks.runner import goals as rows
from benchmarks.scheduler import __main__ as scheduler
from benchmarks.split import __main__ as split
from benchmarks.transfer import cell as transfer

PAGE = ROOT / "docs" / "benchmarks.md"
FOLDER = ROOT / "docs" / "benchmarks"
TABLES: dict[str, Callable[[Sequence[Report]], str]] = {
    "requests": rows,
    "floor": floor.table,
    "peers": overhead.table,
    "split": split.table,
    "scheduler": scheduler.table,
    "faults": kill.table,
}


def filled(text: str, folder: Path) -> str:
    """The page with the tables of ``folder``; what was not measured there stays as it is. ValueError where
    the page has no place for a table.
    """
    tables = {"goals": goals.table(folder)}
    for topic, table in TABLES.items():
        if found := records(folder, topic):
            tables[topic] = f"{where(found)}\n\n{table([report(record) for record in found])}"
    if found := records(folder, "transfer"):
        tables["transfer"] = f"{where(found)}\n\n{transfer.table([cell(record) for record in found])}"
    for name, lines in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not begin or not end:
            raise ValueError(f"the page has no place for the table {name!r}")
        text = f"{before}{begin}{lines}\n{end}{after}"
    return text


def where(found: Sequence[dict[str, object]]) -> str:
    """The machine, the commits and the versions of a topic, in one line."""
    record = found[0]
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(str(one["commit"]) for one in found))
    versions = record["versions"]
    assert isinstance(versions, dict)
    memory = f"{int(str(record['memory_bytes'])) / 2**30:.0f} GiB"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Commit {commits}, {str(record['date'])[:10]}; {record['cpu']}, {record['cores']} cores,"
        f" {memory}, Linux {record['kernel']}; {named}."
    )


def main() -> int:
    """Returns the exit code."""
    PAGE.write_text(filled(PAGE.read_text(), FOLDER))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
