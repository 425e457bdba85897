"""Reports: one self-contained page that shows an index, its versions, its recall and a map of its embeddings."""

from fabstir_vectordb.report.make import make_report, make_request
from fabstir_vectordb.report.page import IndexReport

__all__ = ["IndexReport", "make_report", "make_request"]
