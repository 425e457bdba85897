"""The report of an index, once it is made."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import html_record
from fabstir_vectordb.output_file import writing

__all__ = ["IndexReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """A report of an index: a page for a browser, which holds decrypted data.

    Attributes:
        html: the page.
        index_name: name of the index.
        rows: live rows.
        rows_drawn: rows on the map.
        fields: paths of the fields whose values the page holds.
    """

    html: str = field(repr=False)
    index_name: str
    rows: int
    rows_drawn: int
    fields: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """Writes the page to a file that its owner alone can read (mode 0600), completely or not at all.

        Args:
            path: the file, which is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        with writing(Path(path), private=True) as fresh:
            fresh.write_text(self.html, encoding="utf-8", newline="\n")

    def _repr_html_(self) -> str:
        # Not the page: a notebook is saved with its outputs, and this one is read by whoever gets the notebook.
        shown = {name: getattr(self, name) for name in ("index_name", "rows", "rows_drawn")}
        return html_record("IndexReport", {**shown, "fields": list(self.fields), "bytes": len(self.html.encode())})
