"""One thing that `tlray doctor` looked at, and what it found."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """`problem`: a run would fail or mislead; `warning`: it would run, but look at this first."""

    name: str
    status: Status
    detail: str
    remedy: str = ""  # what to do about it; empty where all is well


def checks_table(checks: list[Check]) -> Table:
    """The checks for a terminal, one row each, the remedy below the finding."""
    colours: dict[Status, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        text = check.detail if not check.remedy else f"{check.detail}\n-> {check.remedy}"
        table.add_row(f"[{colours[check.status]}]{check.status}[/]", check.name, Text(text))
    return table


def gib(num_bytes: float) -> str:
    """Bytes as a person reads them: `1.5 GiB`, `300 MiB`."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
