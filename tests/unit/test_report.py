"""The report of an index: what the page holds, and what it must not hold."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import InvalidConfigError, InvalidInputError, SessionError, forget_memory_store, new_seed_phrase
from fabstir_vectordb._native.handle import NativeCancelled
from fabstir_vectordb.report.charts import data_size
from fabstir_vectordb.report.columns import column_of
from fabstir_vectordb.report.projection import project
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import Row

PHRASE = new_seed_phrase()
EVIL = "</script><script>alert('evil')</script><!--&"
HIDDEN = "a sentence that nobody asked for"


def row(id: str = "a", metadata: Any = None) -> Row:
    return Row(id, None, metadata, 1_700_000_000.0)


def session_on(store: str, **settings: Any) -> VectorDBSession:
    return VectorDBSession.create(s5_portal=store, user_seed_phrase=PHRASE, session_id="report", **settings)


def fill(session: VectorDBSession, rows: int = 150) -> None:
    vectors = np.random.default_rng(1).standard_normal((rows, 12)).astype(np.float32)
    metadata = [{"topic": f"topic {row % 3}", "text": f"{EVIL} {row}", "hidden": HIDDEN} for row in range(rows)]
    session.add_batch([f"{HIDDEN} {row}" for row in range(rows)], vectors, metadata)


@pytest.fixture(scope="module")
def saved() -> Iterator[VectorDBSession]:
    """A session with two versions."""
    with session_on("memory:report", index_name="my-index") as session:
        fill(session)
        session.save_to_s5()
        session.update_metadata(f"{HIDDEN} 3", {"topic": "another"})
        session.save_to_s5()
        yield session
    forget_memory_store("report")


def data_of(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


# ---- the page


def test_values_are_in_the_page_only_where_their_field_is_named(saved: VectorDBSession) -> None:
    report = saved.report(["topic"], recall_sample=5)
    assert (report.index_name, report.rows, report.rows_drawn, report.fields) == ("my-index", 150, 150, ("topic",))
    (topic,) = data_of(report.html)["fields"]
    assert topic["name"] == "topic" and len(topic["values"]) == 150
    assert set(topic["values"]) == {"topic 0", "topic 1", "topic 2", "another"}
    assert HIDDEN not in report.html and "evil" not in report.html
    ids = saved.report(["$id"], recall_sample=0)
    assert HIDDEN in ids.html


def test_no_cid_key_or_phrase_is_in_the_page(saved: VectorDBSession) -> None:
    page = saved.report(["topic"], recall_sample=0).html
    secrets = [PHRASE, *(version.cid[1:] for version in saved.history())]
    assert [secret for secret in secrets if secret in page] == []


def test_a_value_ends_no_script(saved: VectorDBSession) -> None:
    page = saved.report(["text"], recall_sample=0).html
    assert page.count("<script") == page.count("</script>") == 2
    assert EVIL not in page and "<!--" not in page
    (text,) = data_of(page)["fields"]
    assert f"{EVIL} 7" in text["values"]


def test_names_of_fields_and_of_the_index_are_escaped() -> None:
    with session_on("memory:", index_name="an-index") as session:
        session.add_vectors([{"id": "a", "vector": [1.0, 0.0], "metadata": {EVIL: 1}}])
        page = session.report(['"' + EVIL + '"', "\ud800"], recall_sample=0).html
    assert page.encode() and EVIL not in page and "&lt;/script&gt;&lt;script&gt;" in page
    assert page.count("<script") == 2


def test_the_policy_allows_one_script_one_style_and_no_request(saved: VectorDBSession) -> None:
    page = saved.report(["topic"], recall_sample=0).html
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = dict(part.split(" ", 1) for part in found[1].split("; "))
    assert policy["default-src"] == "'none'" and "unsafe" not in found[1]
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert " style=" not in page and "://" not in page.replace("http://www.w3.org", "")
    assert not re.search(r"\son\w+=", page)


def test_versions_have_what_each_save_stored(saved: VectorDBSession) -> None:
    page = saved.report(recall_sample=0, sample=0).html
    lines = [
        re.findall(r"<td>(.*?)</td>", line)
        for line in re.findall(r"<tr>(.*?)</tr>", page.split('id="versions"')[1])[1:]
    ]
    assert [line[0] for line in lines] == ["2", "1"]
    assert lines[1][2:6] == [lines[1][3], lines[1][3], "100.0%", "150"]  # the first save stores all of the version
    assert float(lines[0][4].rstrip("%")) < 60  # the second one only the metadata of a row, and the root
    assert data_of(page) is None and '<section id="map"' not in page


def test_recall_is_drawn_with_all_settings(saved: VectorDBSession) -> None:
    page = saved.report(recall_sample=20).html
    assert "recall@10, with 20 of 150 rows" in page
    assert '<svg class="chart"' in page and "exact: recall 1.0000" in page


def test_an_empty_session_has_a_page() -> None:
    with session_on("memory:") as session:
        report = session.report(["topic"])
        assert (report.rows, report.rows_drawn) == (0, 0)
        for said in ("No row has a vector.", "No version was saved yet.", "too few rows", "none yet"):
            assert said in report.html
        session.add_vectors([{"id": "a", "vector": None, "metadata": {"topic": 1}}])
        assert session.report(["topic"]).rows_drawn == 0
        session.add_vectors([{"id": "b", "vector": [1.0], "metadata": {"topic": 1}}])
        assert session.report(["topic"]).rows_drawn == 1


def test_a_version_whose_root_is_gone_has_no_size(tmp_path: Path) -> None:
    with session_on((tmp_path / "store").as_uri(), encrypt_at_rest=False) as session:
        fill(session, 20)
        session.save_to_s5()
        before = set(tmp_path.rglob("*"))
        session.delete_vector(f"{HIDDEN} 1")
        session.save_to_s5()
        sizes = re.findall(r"<td>([\d.]+ k?B)</td>", session.report(recall_sample=0, sample=0).html)
        assert len(sizes) == 4
        roots = [path for path in before if path.is_file() and path.read_bytes()[:2] == b"\x5f\x5d"]
        for root in roots:
            root.unlink()
        page = session.report(recall_sample=0, sample=0).html
        assert page.count("<td>gone</td>") == len(roots) == 1


def test_some_rows_are_drawn_always_the_same_ones(saved: VectorDBSession) -> None:
    one, other = (data_of(saved.report(["$id"], sample=40, recall_sample=0).html) for _ in range(2))
    assert one == other
    assert len(one["x"]) == len(one["y"]) == len(set(one["fields"][0]["values"])) == 40
    assert 0 == min(one["x"]) <= max(one["x"]) <= one["grid"] == max(*one["x"], *one["y"])


def test_a_lazily_loaded_index_is_drawn_whole(saved: VectorDBSession) -> None:
    with session_on("memory:report", index_name="my-index") as session:
        session.load_user_vectors(lazy_load=True)
        assert session.report(["topic"], recall_sample=0).rows_drawn == 150


def test_a_shared_version_has_a_report_without_a_history(saved: VectorDBSession) -> None:
    with session_on("memory:report", index_name="my-index") as session:
        session.load_user_vectors()
        session.vacuum()
        share = session.share(session.save_to_s5())
    with VectorDBSession.open_share(share, "memory:report") as reader:
        report = reader.report(["topic"], recall_sample=0)
    assert report.rows_drawn == 150 and "sees no history" in report.html
    assert share[1:] not in report.html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": "topic"}, "fields must be a list of paths, got 'topic'"),
        ({"fields": 3}, "fields must be a list of paths"),
        ({"fields": [3]}, "a field must be a string, got int"),
        ({"fields": ["a..b"]}, "a..b"),
        ({"fields": map(str, range(21))}, "at most 20 fields, got 21"),
        ({"sample": -1}, "sample must be an integer from 0 to 20,000, got -1"),
        ({"sample": True}, "sample must be"),
        ({"recall_sample": 1.5}, "recall_sample must be an integer from 0 to 10,000"),
        ({"projection": "t-sne"}, "projection must be one of pca, umap, got 't-sne'"),
    ],
)
def test_arguments_are_checked(saved: VectorDBSession, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        saved.report(**arguments)


def test_a_destroyed_session_makes_none() -> None:
    session = session_on("memory:")
    session.destroy()
    with pytest.raises(SessionError):
        session.report()


# ---- the file


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_the_file_is_for_its_owner_alone(saved: VectorDBSession, tmp_path: Path) -> None:
    report = saved.report(recall_sample=0)
    target = tmp_path / "out.html"
    for _ in range(2):
        report.write(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert target.read_text(encoding="utf-8") == report.html
        target.chmod(0o644)
    with pytest.raises(FileNotFoundError, match="no"):
        report.write(tmp_path / "no" / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
    assert report.html not in report._repr_html_() and "my-index" in report._repr_html_()
    assert report.html not in repr(report)


# ---- values


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, 2.5, None], "number", [1, 2.5, None]),
        ([1, "x"], "text", ["1", "x"]),
        ([True, False], "text", ["true", "false"]),
        ([2**60, 1], "text", [str(2**60), "1"]),
        ([["a", "b"], ["a", 1]], "text", ["a, b", '["a", 1]']),
        ([{"v": "x"}], "text", ['{"v": "x"}']),
        ([datetime.date(1970, 1, 2)], "time", [86_400.0]),
        ([datetime.datetime(1970, 1, 1, 1, tzinfo=datetime.UTC), None], "time", [3_600.0, None]),
        ([uuid.UUID(int=1)], "text", [str(uuid.UUID(int=1))]),
        (["x" * 1_000], "text", ["x" * 299 + "…"]),
        ([None], "text", [None]),
    ],
)
def test_a_column_has_the_kind_of_all_its_values(values: list[Any], kind: str, shown: list[Any]) -> None:
    column = column_of("a.b", [row(metadata={"a": {"b": value}}) for value in values])
    assert (column.kind, column.values) == (kind, shown)


def test_missing_fields_and_those_of_the_row() -> None:
    rows = [row("one", {"a": 1}), row("two", "text"), row("three")]
    assert column_of("a", rows).values == [1, None, None]
    assert column_of("$id", rows).values == ["one", "two", "three"]
    assert column_of("$timestamp", rows).kind == "time"
    assert column_of("a.b", [row(metadata={"a": [{"b": 1}, {"b": 2}]})]).values == ["[1, 2]"]


def test_sizes_are_short() -> None:
    assert [data_size(size) for size in (0, 999, 1_000, 123_456, 5e9, 7e15)] == [
        *("0 B", "999 B", "1.0 kB", "123 kB", "5.0 GB", "7000 TB")
    ]


# ---- the projection


def test_pca_finds_the_two_directions_of_largest_variance() -> None:
    random = np.random.default_rng(2)
    spread = np.geomspace(10, 0.1, 30)
    turn = np.linalg.qr(random.standard_normal((30, 30)))[0]
    vectors = ((random.standard_normal((400, 30)) * spread) @ turn + 5).astype(np.float32)
    found = project(vectors, "l2", "pca")
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        assert abs(np.corrcoef(found.points[:, axis], left[:, axis])[0, 1]) > 0.99999
    assert found.share == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), rel=1e-4)


def test_under_cosine_lengths_do_not_count() -> None:
    vectors = np.random.default_rng(3).standard_normal((50, 8)).astype(np.float32)
    longer = vectors * np.arange(1, 51, dtype=np.float32)[:, None]
    one, other = (project(rows, "cosine", "pca").points for rows in (vectors, longer))
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((0, 4)),
        np.ones((1, 4)),
        np.ones((5, 1)),
        np.ones((9, 4)),
        np.eye(3) * 3e38,
        np.eye(3) * 1e-44,
        np.array([[3e38, 0], [1e-40, 1e-40], [-3e38, 1]]),
    ],
    ids=str,
)
def test_any_rows_have_a_projection(metric: Any, vectors: np.ndarray) -> None:
    found = project(vectors.astype(np.float32), metric, "pca")
    assert found.points.shape == (len(vectors), 2)
    assert np.isfinite(found.points).all()


class Stopped:
    """A control that is cancelled after it was looked at."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def cancelled(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture
def umap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in for umap-learn where Python finds it; its map is what an expression of its arguments is."""

    def write(places: str) -> None:
        (tmp_path / "umap.py").write_text(
            "import numpy, os, sys, time\nprint('noise')\n"
            "class UMAP:\n"
            "    def __init__(self, n_neighbors, precomputed_knn, init, random_state, n_jobs):\n"
            "        self.near, self.far = precomputed_knn\n"
            "    def fit_transform(self, rows):\n"
            f"        return {places}\n",
            encoding="utf-8",
        )

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_umap_draws_the_map_where_it_is_installed(
    saved: VectorDBSession, umap: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    umap("rows if 'FABSTIR_SEED_PHRASE' not in os.environ else sys.exit('the phrase is passed on')")
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)
    assert "by UMAP." in saved.report(projection="umap", recall_sample=0).html
    assert "(PCA)" in saved.report(projection="umap", sample=15, recall_sample=0).html  # too few rows for its graph
    umap("sys.exit('no such thing')")
    with pytest.raises(InvalidConfigError, match="umap-learn failed, use pca: no such thing"):
        saved.report(projection="umap", recall_sample=0)
    with monkeypatch.context() as changed:
        changed.setattr(sys, "executable", "")
        with pytest.raises(InvalidConfigError, match="needs a Python interpreter"):
            saved.report(projection="umap")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InvalidConfigError, match=r"needs umap-learn: .* -m pip install 'umap-learn"):
        saved.report(projection="umap")


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_umap_gets_the_nearest_rows(umap: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, metric: Any) -> None:
    umap("numpy.stack([self.near[:, 3], self.far[:, 3]], 1)")
    monkeypatch.setattr("fabstir_vectordb.report.umap_map._BLOCK", 100_000)
    vectors = np.random.default_rng(4).standard_normal((600, 5)).astype(np.float32)  # more than a pipe holds
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    near, far = project(vectors, metric, "umap").points.T
    assert near.tolist() == np.argsort(distances, axis=1)[:, 3].tolist()
    third = np.sort(distances, axis=1)[:, 3]
    scale = 1 if metric == "cosine" else np.abs(vectors).max()
    np.testing.assert_allclose(far, third**2 / 2 if metric == "cosine" else third / scale, rtol=1e-4)
    assert project(np.ones((40, 5), np.float32), metric, "umap").method == "pca"  # there is nothing to tell them apart


def test_a_cancellation_stops_umap(umap: Callable[[str], None]) -> None:
    umap("time.sleep(600)")
    rows = np.eye(20, dtype=np.float32)
    for looks in (0, 1):
        with pytest.raises(NativeCancelled):
            project(rows, "l2", "umap", Stopped(looks))  # type: ignore[arg-type]


# ---- notebooks


def test_sessions_histories_and_lists_of_results_show_themselves(saved: VectorDBSession) -> None:
    shown = saved._repr_html_()
    assert shown and "vector_count" in shown and "&lt;VectorDBSession &#x27;report&#x27;" in shown
    history = saved.history()
    assert history == list(history) and isinstance(history, list)
    table = history._repr_html_()  # type: ignore[attr-defined]
    assert table.count("<tr>") == len(history) + 1 and "revision" in table
    assert "another" in saved.facets("topic")._repr_html_()  # type: ignore[attr-defined]
    assert "string" in saved.fields()._repr_html_()  # type: ignore[attr-defined]
    assert saved.facets("nothing")._repr_html_() == "<p>none</p>"  # type: ignore[attr-defined]
    session = session_on("memory:")
    session.destroy()
    assert session._repr_html_() is None
