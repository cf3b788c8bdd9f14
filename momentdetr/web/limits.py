"""What one visitor may ask of the machine. Checked on the server: what a browser promises is not relied on."""

from __future__ import annotations

from dataclasses import dataclass

from momentdetr.errors import BadInput


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Args:
        upload_bytes: largest file.
        duration_s: longest video, seconds.
        queries: at once.
        characters: in one query.
        moments: per query.
        videos: that one visitor keeps; the one used longest ago goes first.
        visitors: whose videos are kept; the visitor seen longest ago goes first.
        disk_bytes: of all uploads together; a further upload is refused.
        waiting: requests in the queue; a further one is refused at once.
        parallel: requests that use the model at the same time.
        keep_s: age at which files of visitors are deleted, seconds.
    """

    upload_bytes: int = 500_000_000
    duration_s: float = 3600.0
    queries: int = 8
    characters: int = 200
    moments: int = 5
    videos: int = 3
    visitors: int = 64
    disk_bytes: int = 20_000_000_000
    waiting: int = 32
    parallel: int = 1
    keep_s: int = 4 * 3600


def queries_of(text: object, limits: Limits) -> list[str]:
    """The queries of a text, one a line.

    Args:
        text: what the browser sent; blank lines and doubled spaces are dropped, repeated queries are asked once.
        limits: what is allowed.

    Raises:
        BadInput: nothing usable, too many, or too long.
    """
    if not isinstance(text, str):
        raise BadInput("the query is not a text; write what to find, one query a line")
    if len(text) > 4 * limits.queries * (limits.characters + 2):
        raise BadInput(f"{len(text):,} characters are too many; write at most {limits.queries} short queries")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    queries = list(dict.fromkeys(line for line in lines if line))
    if not queries:
        raise BadInput("there is no query yet; write what to find, one query a line")
    if len(queries) > limits.queries:
        raise BadInput(f"{len(queries)} queries at once are too many; at most {limits.queries}, one a line")
    for query in queries:
        if len(query) > limits.characters:
            raise BadInput(f"a query of {len(query):,} characters is too long; at most {limits.characters}")
        if not query.isprintable():
            raise BadInput("a query contains characters that cannot be shown; write it as plain text")
    return queries


__all__ = ["Limits", "queries_of"]
