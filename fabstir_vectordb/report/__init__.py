"""Reports: one self-contained page that shows an index, its versions, its recall and a map of its embeddings.

What makes the page is imported where one is asked for: most programs make none.
"""

from fabstir_vectordb.report.index_report import IndexReport

__all__ = ["IndexReport"]
