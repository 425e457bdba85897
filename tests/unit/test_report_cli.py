"""The command `report`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from commands import Run, records


def test_a_report_is_written_or_nothing_is(run: Run, tmp_path: Path) -> None:
    rows, target, old = tmp_path / "rows.jsonl", tmp_path / "out.html", "an older page"
    rows.write_text("\n".join(f'{{"id": "doc{n}", "vector": [{n}, 1], "n": {n}, "m": "hidden"}}' for n in range(3)))
    target.write_text(old, encoding="utf-8")

    assert "no version of index" in run("report", target).err
    assert "a..b" in run("report", target, "--field", "a..b").err
    assert run("report", target, "--projection", "t-sne").code == 2
    assert run("report", target, "--sample", "20001").code == 2
    assert "No such file or directory" in run("report", tmp_path / "no" / "out.html").err
    assert target.read_text(encoding="utf-8") == old
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out.html"}

    assert run("import", rows).code == 0
    said = run("report", target, "--field", "n", "--field", "$id", "--recall-sample", "2").out
    assert said == f"{target}: 3 rows, 3 of them on the map, with n, $id. It holds decrypted data.\n"
    page = target.read_text(encoding="utf-8")
    assert "doc1" in page and "hidden" not in page.split('id="data"')[1].split("</script>")[0]
    if os.name == "posix":
        assert stat.S_IMODE(target.stat().st_mode) == 0o600

    few = ("--sample", "0", "--recall-sample", "0")
    (record,) = records(run("report", target, "--json", *few))
    assert record == {"target": str(target), "rows": 3, "rows_drawn": 0, "fields": []}
    page = run("report", "-", *few).out
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
