"""Every Python block of the pages about frameworks runs, one after the other, as it stands there.

Only the secret is another, as a phrase costs no derivation of a key.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from modes import PHRASE

# Some frameworks make folders for their logs where the tests run.
os.environ.setdefault("LOG_FILE", str(Path(tempfile.gettempdir()) / "vectordb_bench" / "vectordb_bench.log"))
PAGES = Path(__file__).resolve().parents[2] / "docs" / "integrations"
#: Pages and the packages without which they are skipped.
NEEDS: dict[str, list[str]] = {
    "dspy": ["dspy"],
    "haystack": ["haystack"],
    "langchain": ["langchain_core"],
    "llama_index": ["llama_index.core"],
    "mteb": [],
    "vectordbbench": ["vectordb_bench"],
}


#: A page whose example needs a model from the network; `test_txtai.py` shows the same without one.
NOT_RUN = {"txtai"}


def test_every_page_is_run() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(NEEDS) | NOT_RUN


@pytest.mark.parametrize("name", NEEDS)
def test_the_blocks_of_a_page_run_and_run_again(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for _ in range(2):  # the second time with what the first one saved
        names: dict[str, object] = {"__name__": "__main__"}
        for block in blocks:
            code = re.sub(r"file:///tmp/[\w-]+", tmp_path.as_uri(), block).replace('"a secret"', repr(PHRASE))
            exec(compile(code, f"{name}.md", "exec"), names)
