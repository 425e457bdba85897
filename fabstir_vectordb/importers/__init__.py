"""Importers: the rows of other vector databases, read from their files.

`open_source` opens a store, and `migrate` brings its rows into a session::

    from fabstir_vectordb.importers import migrate, open_source

    with open_source("chroma", "./chroma", collection="docs") as source:
        report = migrate(session, source)

Every store is untrusted: pickles are read by an interpreter of our own that makes no objects, SQLite files are opened
read-only and their schemas are not trusted, every count is checked. LanceDB is the exception: its files are read by its
own library. Nothing is written to a store.
"""

from __future__ import annotations

from fabstir_vectordb.importers.base import ForeignRow, MigrationReport, Notes, Source
from fabstir_vectordb.importers.migrate import FORMATS, migrate, open_source

__all__ = ["FORMATS", "ForeignRow", "MigrationReport", "Notes", "Source", "migrate", "open_source"]
