"""The command `search`: by a vector, by words, or by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fabstir_vectordb.cli_support import (
    INPUT,
    STANDARD,
    Settings,
    cid_option,
    filter_option,
    json_option,
    loaded,
    query_of,
    say,
    tell_hit,
    vector_of,
)
from fabstir_vectordb.display import json_text
from fabstir_vectordb.text.fusion import FUSIONS
from fabstir_vectordb.types import FusedResult, SearchResult, SearchResults

__all__ = ["checked_search", "search", "search_options", "tell_hits"]


_OPTIONS = (
    click.option("--like", help="Id of a row whose vector is the query."),
    click.option(
        "--vector",
        type=INPUT,
        help="File with the query: .npy, or a JSON array; - for JSON on stdin.",
    ),
    click.option("--text", help="Words to search for, beside a vector or without one."),
    click.option("--fusion", type=click.Choice(FUSIONS), help="How the hits of a vector and of --text are joined."),
    click.option("--alpha", type=float, help="The vector's share in --fusion weighted, 0 to 1."),
    filter_option,
    click.option("--group-by", metavar="FIELD", help="Find -k groups of rows by a metadata field."),
    click.option("--group-size", type=int, help="Most hits of a group."),
    click.option("-k", default=10, show_default=True, help="Most hits; most groups with --group-by."),
    click.option("--threshold", type=float, help="Least score of a hit; by default there is none."),
    json_option("one JSON object per hit"),
    click.option("--highlight", is_flag=True, help="With --json: where the texts have the words of --text."),
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of a search, which `checked_search` takes, and ``k`` and ``as_json``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def checked_search(
    settings: Settings,
    like: str | None,
    vector: Path | None,
    text: str | None,
    as_json: bool,
    highlight: bool,
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The vector of a search, None without --vector, and the other arguments of `search`. --like is left to the caller.

    Raises:
        click.UsageError: options do not go together.
    """
    if like is not None and vector is not None:
        raise click.UsageError("give either --like ID or --vector FILE")
    if like is None and vector is None and text is None:
        raise click.UsageError("give either --like ID or --vector FILE, or --text WORDS")
    if vector == STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the query and the phrase")
    if highlight and not as_json:
        raise click.UsageError("--highlight gives places of words: give --json, too")
    asked = {name: value for name, value in options.items() if value is not None} | {"threshold": options["threshold"]}
    if text is not None:
        asked |= {"text": text, "highlight": highlight}
    elif highlight:
        raise click.UsageError("--highlight needs --text WORDS")
    return None if vector is None else query_of(vector), asked


@click.command()
@search_options
@cid_option
@click.pass_obj
def search(
    settings: Settings,
    /,
    like: str | None,
    vector: Path | None,
    text: str | None,
    k: int,
    cid: str | None,
    as_json: bool,
    highlight: bool,
    **options: Any,
) -> None:
    """Find the rows nearest to a query vector, those that have the words of a text, or both."""
    query, asked = checked_search(settings, like, vector, text, as_json, highlight, options)
    with loaded(settings, cid) as session:
        like_or_query = query if like is None else vector_of(session.get([like])[0], like)
        tell_hits(as_json, session.search(like_or_query, k, **asked))


def tell_hits(as_json: bool, hits: SearchResults) -> None:
    """Prints the hits of a search, by groups where there are any."""
    if not hits.groups:
        _print(hits, as_json, {})
    for group in hits.groups:
        if not as_json:
            say(f"{json_text(group.value)}:")
        _print(group.hits, as_json, {"group": group.value})


def _print(hits: Sequence[SearchResult], as_json: bool, of_group: dict[str, Any]) -> None:
    for hit in hits:
        more = dict(of_group)
        if isinstance(hit, FusedResult):
            more |= {"vector_score": hit.vector_score, "text_score": hit.text_score}
            if hit.highlights is not None:
                more["highlights"] = [tuple(place) for place in hit.highlights]
        tell_hit(as_json, hit, more)
