"""The page of a report in Chromium: it shows what it should, complains of nothing and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page, browsing

from fabstir_vectordb import new_seed_phrase
from fabstir_vectordb.sync import VectorDBSession

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (apt-get install chromium)")

#: Were it to run, the page would have another title, and the console a message.
EVIL = "</script><img src=x onerror=alert(1)><script>document.title='evil';console.error('evil')</script>"


def written(target: Path, rows: int, dim: int, sample: int = 5_000) -> Path:
    vectors = np.random.default_rng(1).standard_normal((rows, dim)).astype(np.float32)
    metadata = [{"topic": f"topic {row % 12}", "text": f"{EVIL} {row}", "year": row % 40} for row in range(rows)]
    with VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase=new_seed_phrase(), session_id="report", memory_budget_mb=2_000
    ) as session:
        session.add_batch([str(row) for row in range(rows)], vectors, metadata)
        session.save_to_s5()
        session.report(["topic", "text", "year", "$timestamp"], sample=sample, recall_sample=10).write(target)
    return target


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as tab:
        yield tab


def text(page: Page, id: str) -> str:
    shown = page.run(f"document.getElementById('{id}').innerText")
    assert isinstance(shown, str)
    return shown


def colors(page: Page) -> int:
    """How many colours the map has."""
    count = page.run(
        """(() => { const c = document.getElementById("canvas"), seen = new Set();
        const dots = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
        for (const dot of dots) if (dot >>> 24 > 150) seen.add(dot); return seen.size; })()"""
    )
    assert isinstance(count, int)
    return count


def test_the_page_is_drawn_searched_and_coloured(page: Page, tmp_path: Path) -> None:
    file = written(tmp_path / "out.html", 300, 8)
    for width, height, scheme in ((1280, 900, "light"), (390, 800, "dark")):
        page.open(file, width, height, scheme)
        assert page.run("document.title") == "Index default"
        assert page.run("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
        assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        assert colors(page) > 8
        legend = text(page, "legend")
        assert "topic 1 (25)" in legend and "3 other values" in legend

        page.run("(color.value = '2', color.dispatchEvent(new Event('change')))")
        assert text(page, "legend").split() == ["0", "39"]  # a scale of numbers
        page.run("(search.value = ' SCRIPT> 29', search.dispatchEvent(new Event('input')))")
        page.run("new Promise(done => setTimeout(done, 200))")
        assert text(page, "found") == "11 of 300 rows drawn"
        page.run("document.querySelector('#hits button').click()")
        assert f"{EVIL} 29" in text(page, "card")
        page.run("(search.value = '', search.dispatchEvent(new Event('input')))")
        page.run("new Promise(done => setTimeout(done, 200))")
        assert page.run("card.hidden") is True

        page.run("closer.click()")
        page.run(
            """(() => { const box = canvas.getBoundingClientRect();
            const move = (x, y) => canvas.dispatchEvent(
              new PointerEvent("pointermove", {clientX: box.left + x, clientY: box.top + y}));
            for (let x = 0; x < box.width && card.hidden; x += 5)
              for (let y = 0; y < box.height && card.hidden; y += 5) move(x, y); })()"""
        )
        assert "year" in text(page, "card") and "$timestamp" in text(page, "card")
    assert page.complaints == []
    assert set(page.requests) == {file.as_uri()}


def test_the_policy_stops_what_does_not_belong_to_the_page(page: Page, tmp_path: Path) -> None:
    file = written(tmp_path / "out.html", 20, 4)
    html = file.read_text(encoding="utf-8")
    file.write_text(html.replace("</main>", "</main><script>document.title = 'evil'</script><img src='x.png'>"))
    page.requests.clear()
    page.complaints.clear()
    page.open(file)
    assert page.run("document.title") == "Index default"
    assert len(page.complaints) == 2 and all("Content Security Policy" in said for said in page.complaints)


@pytest.mark.long
def test_a_hundred_thousand_rows_open_at_once(page: Page, tmp_path: Path) -> None:
    file = written(tmp_path / "out.html", 100_000, 64, sample=20_000)
    page.complaints.clear()
    assert page.open(file) < 3
    assert colors(page) > 8
    assert page.complaints == []
