"""A search result for people at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from momentdetr.search.formats import timestamp

if TYPE_CHECKING:
    from rich.table import Table

    from momentdetr.search.results import SearchResult

ABSENT = "probably not in this video"


def table(result: SearchResult) -> Table:
    """One row a moment: the query, its rank, start - end as mm:ss.s, score; and where the query is probably absent."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, title=Text(printable(_title(result))), title_justify="left")
    drawn.add_column("query", overflow="fold")
    drawn.add_column("rank", justify="right")
    drawn.add_column("start - end", no_wrap=True)
    drawn.add_column("score", justify="right")
    for answer in result:
        words = Text(printable(answer.query))
        if answer.is_probably_absent:
            words.append(f"\n({ABSENT}: {answer.absent:.0%})", style="yellow")
        if not answer.moments:
            drawn.add_row(words, "", "none found", "")
        for rank, moment in enumerate(answer.moments, start=1):
            span = f"{timestamp(moment.start_s)} - {timestamp(moment.end_s)}"
            drawn.add_row(words if rank == 1 else "", str(rank), span, f"{moment.score:.2f}")
        drawn.add_section()
    return drawn


def printable(text: str) -> str:
    """Text without what would steer a terminal: control characters become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def _title(result: SearchResult) -> str:
    part = "" if result.complete else ", only the readable part"
    return f"{result.video} ({timestamp(result.duration_s)}{part}), model {result.model}"
