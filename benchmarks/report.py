"""Writes the tables of README.md and docs/benchmarks.md and the pictures in docs/img from benchmarks/results.

    python benchmarks/report.py           writes them
    python benchmarks/report.py --check   checks that they match the results, and writes nothing

Text between `<!-- benchmarks: NAME -->` and `<!-- benchmarks: end -->` is replaced by the table of that name.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench_columns import FIELDS
from harness import charts, curves
from harness.registry import ENGINES, LISTS, OURS, TITLES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = Path("docs", "img")
MARKED = re.compile(r"(<!-- benchmarks: (?!end)([a-z0-9-]+) -->\n).*?(<!-- benchmarks: end -->)", re.DOTALL)
CHART_RECALL = 0.8
TITLES_OF_LISTS = {name: entry.title for name, entry in LISTS.items()}

Result = dict[str, Any]
Results = dict[str, Result]


# ---- numbers as text


def number(value: float | None, digits: int = 3) -> str:
    """A number with three significant figures and thousands separators: 27,500 · 1.24 · 0.0123."""
    if value is None:
        return "–"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.{digits}g}"


def median(stat: curves.Stat | None, scale: float = 1.0, digits: int = 3) -> str:
    """A median, as text."""
    return number(None if stat is None else stat["median"] * scale, digits)


def spread(stat: curves.Stat | None) -> str:
    """A median with its range: 2.41 (2.20 – 2.63)."""
    if stat is None:
        return "–"
    return f"**{stat['median']:.2f}** ({stat['min']:.2f} – {stat['max']:.2f})"


def setting(values: Result) -> str:
    """A setting as text, for example "ef 64, refine 1"."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "default"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ---- conditions of a measurement


def conditions(result: Result) -> str:
    """One line with the rows, the processor and the rounds of a result."""
    there, given = result["environment"], result["parameters"]
    size = f"{given['rows']:,} rows × {given['dim']} dimensions" if "rows" in given else f"{given['dim']} dimensions"
    rounds = 1 + max((run["round"] for run in result["runs"]), default=0)
    return (
        f"{size}; {there['cpu']}, {there['cores']} cores, {there['kernels']} kernels; "
        f"{rounds} round{'s' if rounds > 1 else ''}."
    )


def absent(result: Result) -> str:
    """The engines that were not measured, and the jobs that failed."""
    lines = [f"Not measured: {TITLES[name]} ({why})." for name, why in result["skipped"].items()]
    failed = {(run["engine"], run["error"]) for run in result["runs"] if "error" in run}
    lines += [f"Failed: {TITLES.get(name, name)}: {error}." for name, error in sorted(failed)]
    return "\n" + " ".join(lines) + "\n" if lines else ""


def versions(results: Results) -> str:
    """Processor, system and package versions of all results."""
    seen: dict[str, None] = {}
    for result in results.values():
        there = result["environment"]
        packages = ", ".join(f"{name} {version}" for name, version in there["versions"].items())
        memory = f", {there['memory_gib']} GiB" if there["memory_gib"] else ""
        seen[
            f"{there['cpu']}, {there['cores']} cores{memory}, {there['platform']} {there['arch']}, "
            f"Python {there['python']}; {packages}."
        ] = None
    return "".join(f"{line}\n" for line in seen)


# ---- tables

RECALLS = ("0.90", "0.95", "0.99")


def search_rows(summary: Result, latency: bool) -> Iterable[list[str]]:
    for engine, found in _fastest_first(summary):
        row = [TITLES[engine], *(median(found["qps"][recall]) for recall in RECALLS)]
        ratios = found.get("ours_over_it", {})
        row += [spread(ratios[recall]) if ratios else "1" for recall in RECALLS]
        if latency:
            row += [median(found["p50_us"]), median(found["p99_us"])]
        yield row


def _fastest_first(summary: Result) -> list[tuple[str, Result]]:
    def key(item: tuple[str, Result]) -> float:
        at = item[1]["qps"]["0.95"]
        return 0.0 if at is None else -float(at["median"])

    return sorted(summary.items(), key=key)


def search_single(result: Result) -> str:
    """One query a call, with a picture."""
    picture = "![recall against QPS, one query a call](img/search-single.svg)"
    return f"{conditions(result)}\n\n{picture}\n\n{_single(result)}"


def search_single_plain(result: Result) -> str:
    """The same without a picture."""
    return f"{conditions(result)}\n\n{_single(result)}"


def _single(result: Result) -> str:
    head = ["one query a call, one core", *(f"QPS at {recall}" for recall in RECALLS)]
    head += [f"ours ÷ it at {recall}" for recall in RECALLS] + ["p50 µs", "p99 µs"]
    return table(head, search_rows(result["summary"]["single-1"], latency=True)) + absent(result)


def search_batch(results: Results) -> str:
    result = results["compare_search"]
    text = f"{conditions(result)}\n\n![recall against QPS, batch with two threads](img/search-batch.svg)\n\n"
    for threads in (1, 2):
        head = [f"batch, {threads} thread{'s' if threads > 1 else ''}", *(f"QPS at {recall}" for recall in RECALLS)]
        head += [f"ours ÷ it at {recall}" for recall in RECALLS]
        text += table(head, search_rows(result["summary"][f"batch-{threads}"], latency=False)) + "\n"
    return text.rstrip("\n") + "\n" + absent(result)


def batch_threads(result: Result) -> str:
    """A batch with one thread, with two, and with two processes."""
    head = [
        "queries, ef_search",
        "",
        "µs with one thread",
        "with two",
        "two threads do, × one",
        "two processes do, × one",
    ]
    rows = []
    for engine, measured in result["summary"].items():
        for name, found in measured.items():
            batch, ef = map(int, name.split("/"))
            times = [median(found[of]) for of in ("one_thread_us", "two_threads_us")]
            times += [spread(found[of]) for of in ("threads", "processes")]
            rows.append([f"{batch:,}, {ef}", TITLES[engine], *times])
    return f"{conditions(result)}\n\n{table(head, rows)}{absent(result)}"


def build(result: Result) -> str:
    """Rows a second, time of all cores, and what the built index is worth."""
    head = ["", "rows/s, 2 threads", "ours ÷ it", "CPU µs/row", "it ÷ ours", "then, with", "recall", "QPS"]
    rows = []
    for engine, found in result["summary"].items():
        ratios = [spread(found[name]) if engine != OURS else "1" for name in ("ours_over_it", "its_cpu_over_ours")]
        rows.append(
            [
                TITLES[engine],
                median(found["rows_per_s"]),
                ratios[0],
                median(found["cpu_us_per_row"]),
                ratios[1],
                setting(found["setting"] or {}),
                median(found["recall"], digits=4),
                median(found["qps"]),
            ]
        )
    return f"{conditions(result)}\n\n{table(head, rows)}{absent(result)}"


def memory(results: Results) -> str:
    result = results["compare_build"]
    raw = 4 * result["parameters"]["dim"]
    head = ["", "B/row after the add", "÷ raw", "B/row after a load", "stored MB", "save s", "load s"]
    rows = []
    for engine, found in result["summary"].items():
        rows.append(
            [
                TITLES[engine],
                median(found["grown_bytes_per_row"]),
                median(found["grown_bytes_per_row"], 1 / raw),
                median(found["loaded_bytes_per_row"]),
                median(found["stored_bytes"], 1e-6),
                median(found["save_s"]),
                median(found["load_s"]),
            ]
        )
    return f"{conditions(result)} Raw float32 rows: {raw:,} B.\n\n{table(head, rows)}{absent(result)}"


def flat(results: Results) -> str:
    result = results["compare_flat"]
    names = {"single-1": "one query a call", "batch-1": "batch, 1 thread", "batch-2": "batch, 2 threads"}
    rows = []
    for mode, title in names.items():
        for engine, found in result["summary"][mode].items():
            ratio = spread(found["ours_over_it"]) if "ours_over_it" in found else "1"
            rows.append([title, TITLES[engine], median(found["qps"]), ratio, median(found["recall"], digits=5)])
    head = ["exact search", "", "QPS", "ours ÷ it", "recall"]
    return f"{conditions(result)}\n\n{table(head, rows)}{absent(result)}"


def session(results: Results) -> str:
    result = results["compare_session"]
    head = ["ids and metadata read", "with", "recall", "QPS", "ours ÷ it at that recall", "p50 µs", "p99 µs"]
    adds = ["", "add s", "durable s", "÷ ours", "B/row", "stored MB"]
    rows, added = [], []
    for engine, found in result["summary"].items():
        for point in found["points"]:
            ratio = spread(point["ours_over_it"]) if "ours_over_it" in point else "1"
            rows.append(
                [
                    TITLES[engine],
                    setting(point["setting"]),
                    median(point["recall"], digits=4),
                    median(point["qps"]),
                    ratio,
                    median(point["p50_us"]),
                    median(point["p99_us"]),
                ]
            )
        added.append(
            [
                TITLES[engine],
                median(found["add_s"]),
                median(found["durable_s"]),
                spread(found["it_over_ours_durable_s"]) if engine != OURS else "1",
                median(found["grown_bytes_per_row"]),
                median(found["stored_bytes"], 1e-6),
            ]
        )
    return f"{conditions(result)}\n\n{table(head, rows)}\n{table(adds, added)}{absent(result)}"


def growth(results: Results) -> str:
    result = results["bench_growth"]
    head = ["rows", "", "µs/query at 0.95", "at 0.99", "ours ÷ it at 0.95", "at 0.99", "build, CPU µs/row"]
    head.append("add 1 row µs")
    rows = []
    for size, engines in result["summary"]["sizes"].items():
        for engine, found in engines.items():
            ratios = found.get("ours_over_it", {})
            rows.append(
                [
                    _set_title(size, result),
                    TITLES[engine],
                    *(median(found["us_per_query"][recall]) for recall in ("0.95", "0.99")),
                    *(spread(ratios[recall]) if ratios else "1" for recall in ("0.95", "0.99")),
                    number(found.get("build_cpu_us_per_row")),
                    median(found["add_p50_us"]),
                ]
            )
    return (
        f"{conditions(result)}\n\n![microseconds a query at recall 0.95 by rows](img/growth.svg)\n\n"
        f"{table(head, rows)}{absent(result)}"
    )


def _set_title(name: str, result: Result) -> str:
    whole = result["parameters"]["seed_rows"]
    if name in ("control", "real"):
        return {"control": f"control: a tenth, grown to {whole:,}", "real": f"the real {whole:,}"}[name]
    return f"{int(name):,}" + (", grown" if int(name) > whole else "")


def evidence(results: Results) -> str:
    result = results["bench_growth"]
    head = ["set", "of", "cosine to the 1st neighbour", "10th", "100th", "intrinsic dimension"]
    rows = []
    for name, found in result["summary"]["evidence"].items():
        for kind in ("rows", "queries"):
            values = found[kind]
            cosines = [f"{values[f'cosine_{rank}']:.3f}" for rank in (1, 10, 100)]
            rows.append([_set_title(name, result), kind, *cosines, f"{values['intrinsic_dimension']:.1f}"])
    return table(head, rows)


def kernels(results: Results) -> str:
    """Instructions and times of a row; whichever was measured."""
    result = results["bench_kernels"]
    summary = result["summary"]
    text = f"{conditions(result)}\n"
    if counted := summary["instructions"]:
        names = list(dict.fromkeys(case["table"] for case in counted))
        counts: dict[str, dict[str, float]] = {}
        for case in counted:
            counts.setdefault(case["kernel"], {})[case["table"]] = case["count"]
        head = ["instructions a row", *names]
        text += "\n" + table(
            head, [[f"`{kernel}`", *(number(of.get(n), 4) for n in names)] for kernel, of in counts.items()]
        )
    if "cases" not in summary:
        return text
    head = ["kernel", "table", "ns a row, cached", "from memory", "random", "GB/s from memory", "÷ copy"]
    cases: dict[tuple[str, str], Result] = {}
    for case in summary["cases"]:
        cases.setdefault((case["kernel"], case["table"]), {})[case["rows"]] = case
    rows = [
        [
            f"`{kernel}`",
            name,
            *(median(found[source]["ns"]) for source in ("cache", "memory", "random")),
            median(found["memory"]["gb_s"]),
            median(found["memory"]["over_copy"]),
        ]
        for (kernel, name), found in cases.items()
    ]
    speeds = f"Copy: {median(summary['copy_gb_s'])} GB/s. Read: {median(summary['read_gb_s'])} GB/s."
    return f"{text}\n{speeds}\n\n{table(head, rows)}"


def life(results: Results) -> str:
    """Tables of this library alone, if measured: saves and loads, memory, delay of the event loop."""
    parts = []
    if found := results.get("bench_save_load"):
        names = [name for name in found["summary"] if name.endswith("_s")]
        rows = [[name.removesuffix("_s").replace("_", " "), median(found["summary"][name])] for name in names]
        rows.append(["stored MB", median(found["summary"]["stored_mb"])])
        parts.append(f"{conditions(found)}\n\n" + table(["on a local directory", "s"], rows))
    if found := results.get("bench_memory"):
        rows = [
            [part, median(values["grown_over_raw"]), median(values["stats_over_raw"])]
            for part, values in found["summary"].items()
            if part != "cycles"
        ]
        text = table(["memory", "process growth ÷ raw rows", "get_stats ÷ raw rows"], rows)
        cycled = median(found["summary"]["cycles"]["grown_mb"])
        parts.append(
            f"{conditions(found)}\n\n{text}\n{found['parameters']['cycles']} cycles of create, fill and destroy: "
            f"{cycled} MB of growth.\n"
        )
    if found := results.get("bench_loop_lag"):
        rows = [
            [verb, *(median(values[name]) for name in ("seconds", "p50_ms", "p99_ms", "max_ms"))]
            for verb, values in found["summary"].items()
        ]
        head = ["the event loop wakes late beside", "s", "p50 ms", "p99 ms", "most ms"]
        parts.append(f"{conditions(found)}\n\n{table(head, rows)}")
    return "\n".join(parts)


def lists(result: Result) -> str:
    """Inverted lists alone: build time, and QPS at several recalls."""
    text = ""
    for name, title in (("all_calls", "one query a call, one core"), ("median_call", "the same, of the median call")):
        rows = []
        for engine, found in result["summary"].items():
            at = [median(found[name]["qps"][recall]) for recall in RECALLS]
            ratios = [spread(found[name]["ours_over_it"][recall]) if engine != OURS else "1" for recall in RECALLS]
            rows.append([TITLES_OF_LISTS[engine], *at, *ratios])
        head = [title, *(f"QPS at {recall}" for recall in RECALLS), *(f"ours ÷ it at {recall}" for recall in RECALLS)]
        text += table(head, rows) + "\n"
    built = [
        [TITLES_OF_LISTS[engine], median(found["build_s"]), spread(found.get("it_over_ours_build_s"))]
        for engine, found in result["summary"].items()
    ]
    return f"{conditions(result)}\n\n{text}{table(['build, two threads', 's', 'it ÷ ours'], built)}{absent(result)}"


def _speed(found: Result, engine: str) -> list[str]:
    return [median(found["qps"]), spread(found["ours_over_it"]) if engine != OURS else "1"]


def filters(result: Result) -> str:
    """Searches with filters, and the time to evaluate a filter."""
    summary = result["summary"]
    rows, costs = [], []
    for case in summary.values():
        takes = f"{case['rows']:,}"
        for engine, found in case["engines"].items():
            speeds = [text for name in ("all_calls", "median_call") for text in _speed(found[name], engine)]
            rows.append([takes, TITLES[engine], *speeds, number(found["best_recall"], digits=4)])
        if mine := case["engines"].get(OURS):
            costs.append([takes, *(median(mine[name]) for name in ("first_ms", "after_a_change_ms", "known_us"))])
    speeds = [f"QPS at {result['parameters']['recall']}", "ours ÷ it", "… of the median call", "ours ÷ it"]
    head = ["rows that match", "", *speeds, "best recall"]
    cost_head = ["a filter that takes", "first time, ms", "after a change, ms", "known, µs"]
    return f"{conditions(result)}\n\n{table(head, rows)}\n{table(cost_head, costs)}{absent(result)}"


def columns(results: Results) -> str:
    """Milliseconds of the first use of a field: the least of all rounds, as others' work only adds to it."""
    result = results["bench_columns"]
    rows = [[f"`{field}`", FIELDS[field], number(found["min"])] for field, found in result["summary"].items()]
    there, given = result["environment"], result["parameters"]
    return f"{given['rows']:,} rows; {there['cpu']}.\n\n{table(['first use of', 'values', 'CPU ms'], rows)}"


def link(results: Results) -> str:
    """Bytes, requests and seconds over a link, and loads from a directory."""
    result = results["bench_link"]
    given, modes = result["parameters"], list(result["summary"])
    each = list(result["summary"].values())

    def row(name: str, pick: Callable[[Result], curves.Stat], scale: float = 1.0) -> list[str]:
        return [name, *(median(pick(mode), scale) for mode in each)]

    def costs(name: str, part: str, verb: str) -> Iterable[list[str]]:
        yield row(f"{name}: MB", lambda mode: mode[part][verb]["mb"])
        yield row("… requests", lambda mode: mode[part][verb]["requests"])
        yield row("… one after the other", lambda mode: mode[part][verb]["round_trips"])
        yield row("… s", lambda mode: mode[part][verb]["seconds"])

    rows = [
        *costs("first save", "saves", "save"),
        *costs("save unchanged", "saves", "save_unchanged"),
        *costs("save after adding 1 %", "saves", "save_after_adding"),
        row("… % of the first save's bytes", lambda mode: mode["saves"]["adding_mb_over_full"], 100),
        row("… mean of 30 in a row, %", lambda mode: mode["saves"]["added_mb_over_full_mean"], 100),
        row("save after deleting 1 %: %", lambda mode: mode["saves"]["deleting_mb_over_full"], 100),
        row("save after changing 1 % of the metadata: %", lambda mode: mode["saves"]["changing_mb_over_full"], 100),
        *costs("lazy load to first answer", "loads", "first_answer"),
        row("… % of a whole load's bytes", lambda mode: mode["loads"]["first_answer_mb_over_full"], 100),
        row("… % of its time", lambda mode: mode["loads"]["first_answer_seconds_over_full"], 100),
        row("… recall@10", lambda mode: mode["loads"]["first_answer_recall"]),
        *costs("ten further cold queries", "loads", "cold_queries"),
        *costs("whole load", "loads", "full_load"),
        row("directory: lazy load, s", lambda mode: mode["disk"]["lazy_load_s"]),
        row("… whole load, s", lambda mode: mode["disk"]["full_load_s"]),
        row("… save, s", lambda mode: mode["disk"]["save_s"]),
        row("memory after 1,000 lazy searches ÷ raw rows", lambda mode: mode["disk"]["lazy_memory_over_raw"]),
    ]
    speed = f"{given['latency_s'] * 1e3:.0f} ms a request, {given['bytes_per_s'] / 1e6:.0f} MB/s"
    head = f"{speed}, {given['parallel']} at a time"
    return f"{conditions(result)}\n\n{table([head, *modes], rows)}"


def link_text(results: Results) -> str:
    """The first searches after lazy loads: by words, by vector, and by both."""
    result = results["bench_link_text"]
    found, sides = result["summary"], {"words": "three words", "vector": "a vector", "both": "both"}
    rows = [
        [title, *(median(found[side][name], scale) for side in sides)]
        for title, name, scale in (
            ("MB, without pages of metadata", "without_pages_mb", 1.0),
            ("… % of the version's bytes", "without_pages_over_stored", 100.0),
            ("… the most, %", "without_pages_over_stored_max", 100.0),
            ("MB, pages of the hits' metadata", "pages_mb", 1.0),
            ("requests", "requests", 1.0),
            ("one after the other", "round_trips", 1.0),
            ("… the most", "round_trips_max", 1.0),
            ("s", "seconds", 1.0),
        )
    ]
    head = f"first search of {result['parameters']['searches']}, version of {median(found['stored_mb'])} MB"
    return f"{conditions(result)}\n\n{table([head, *sides.values()], rows)}"


def readme(results: Results) -> str:
    """The short table: searches of this library's settings and of the fastest variant of each other library.

    With kernels of AVX2, which most users have.
    """
    result = results["avx2/compare_search"]
    head = ["", "QPS at recall 0.95", "at 0.99", "ours ÷ it at 0.95", "at 0.99"]
    rows, seen = [], set()
    for engine, found in _fastest_first(result["summary"]["single-1"]):
        package = ENGINES[engine].package
        if package in seen and package != ENGINES[OURS].package:
            continue
        seen.add(package)
        ratios = found.get("ours_over_it", {})
        rows.append(
            [
                TITLES[engine],
                *(median(found["qps"][recall]) for recall in ("0.95", "0.99")),
                *(spread(ratios[recall]) if ratios else "1" for recall in ("0.95", "0.99")),
            ]
        )
    text = f"{conditions(result)} One query a call, one core.\n\n{table(head, rows)}"
    if "compare_session" in results:
        text += "\n" + _databases_in_a_line(results["compare_session"])
    return text


def _databases_in_a_line(result: Result) -> str:
    def best(found: Result) -> str:
        point = max(found["points"], key=lambda point: (point["recall"]["median"] >= 0.99, point["qps"]["median"]))
        return f"{median(point['qps'])} QPS at recall {point['recall']['median']:.3f}"

    each = "; ".join(f"{TITLES[engine]} {best(found)}" for engine, found in result["summary"].items())
    cpu = result["environment"]["cpu"]
    return f"With the ids and metadata of all ten hits read, all cores of one {cpu} allowed: {each}.\n"


def kinds(results: Results) -> str:
    """Recall and speed of the default, and ratios to peers at its recall, by kind and metric."""
    result = results["bench_kinds"]
    head = ["kind, dimensions", "metric", "plan", "recall", "µs", "exact µs", "ours ÷ hnswlib", "ours ÷ SymphonyQG"]
    rows = []
    for kind, metrics in result["summary"].items():
        for metric, found in metrics.items():
            ratios = [_at_our_recall(found, engine) for engine in ("hnswlib", "symqg")]
            numbers = [number(found["recall"], 4), median(found["us"]), median(found["exact_us"])]
            rows.append([kind, metric, found["plan"], *numbers, *ratios])
    environment, count = result["environment"], result["parameters"]["rows"]
    machine = f"{environment['cpu']}, {environment['cores']} cores, {environment['kernels']} kernels"
    return f"{count:,} rows of each kind; {machine}.\n\n{table(head, rows)}{absent(result)}"


def _at_our_recall(found: Result, engine: str) -> str:
    """The ratio; where the other does not reach our recall, the best that it reaches."""
    if engine not in found:
        return "–"
    if found[engine] is None:
        return f"reaches {number(found[f'{engine}_recall'])}"
    return spread(found[engine])


def damage(results: Results) -> str:
    result = results["bench_damage"]
    head = ["files of", "bits flipped", "refused", "answered as before", "answered wrongly", "crashed", "hung"]
    rows = [
        [TITLES[name], *(str(found[key]) for key in ("trials", "refused", "right", "wrong", "crashed", "hung"))]
        for name, found in result["summary"].items()
    ]
    return f"{conditions(result)}\n\n{table(head, rows)}{absent(result)}"


def _of(write: Callable[[Result], str], name: str) -> tuple[Callable[[Results], str], tuple[str, ...]]:
    """A block of one result: those of other kernels, below a folder, are written as the others are."""
    return lambda results: write(results[name]), (name,)


#: Name of a block -> function that writes it, and the results that it needs.
BLOCKS: dict[str, tuple[Callable[[Results], str], tuple[str, ...]]] = {
    "readme": (readme, ("avx2/compare_search",)),
    "versions": (versions, ()),
    "search-single": _of(search_single, "compare_search"),
    "search-single-avx2": _of(search_single_plain, "avx2/compare_search"),
    "search-batch": (search_batch, ("compare_search",)),
    "batch-threads": _of(batch_threads, "bench_batch"),
    "batch-threads-avx2": _of(batch_threads, "avx2/bench_batch"),
    "build": _of(build, "compare_build"),
    "build-avx2": _of(build, "avx2/compare_build"),
    "memory": (memory, ("compare_build",)),
    "flat": (flat, ("compare_flat",)),
    "session": (session, ("compare_session",)),
    "growth": (growth, ("bench_growth",)),
    "evidence": (evidence, ("bench_growth",)),
    "kernels": (kernels, ("bench_kernels",)),
    "life": (life, ()),
    "link": (link, ("bench_link",)),
    "link-text": (link_text, ("bench_link_text",)),
    "lists": _of(lists, "compare_lists"),
    "lists-avx2": _of(lists, "avx2/compare_lists"),
    "damage": (damage, ("bench_damage",)),
    "filters": _of(filters, "bench_filter"),
    "filters-avx2": _of(filters, "avx2/bench_filter"),
    "columns": (columns, ("bench_columns",)),
    "kinds": (kinds, ("bench_kinds",)),
}


# ---- pictures


def pictures(results: Results) -> dict[str, str]:
    """File name → text of each picture for which there are results."""
    found = {}
    if "compare_search" in results:
        summary = results["compare_search"]["summary"]
        found["search-single.svg"] = recall_chart("One query a call, one core", summary["single-1"])
        found["search-batch.svg"] = recall_chart("Batch of all queries, two threads", summary["batch-2"])
    if "bench_growth" in results:
        found["growth.svg"] = growth_chart(results["bench_growth"]["summary"]["sizes"])
    return found


def colour(engine: str) -> int:
    """The colour of an engine, the same in every picture; this library has the first colour."""
    return list(ENGINES).index(engine)


def recall_chart(title: str, summary: Result) -> str:
    lines = []
    for engine in sorted(summary, key=colour):
        front = [point for point in curves.front(summary[engine]["points"]) if point["recall"] >= CHART_RECALL]
        points = [(point["recall"], point["qps"]) for point in front]
        lines.append(charts.Series(TITLES[engine], points, colour(engine)))
    recalls = [x for line in lines for x, _ in line.points]
    speeds = [y for line in lines for _, y in line.points]
    return charts.line_chart(title, charts.recall_axis(recalls), charts.log_axis("queries a second", speeds), lines)


def growth_chart(sizes: Result) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for size, engines in sizes.items():
        for engine, found in engines.items() if size != "control" else ():
            if (cost := found["us_per_query"]["0.95"]) is not None:
                points.setdefault(engine, []).append((float(size), cost["median"]))
    lines = [charts.Series(TITLES[engine], sorted(of), colour(engine)) for engine, of in points.items()]
    x_axis = charts.marked_axis("rows", [x for line in lines for x, _ in line.points])
    y_axis = charts.log_axis("µs a query", [y for line in lines for _, y in line.points])
    return charts.line_chart("Cost of a search at recall 0.95, one core", x_axis, y_axis, lines)


# ---- files


def load_results(folder: Path = RESULTS) -> Results:
    """The result files of a folder by benchmark, and those of its subfolders as "subfolder/benchmark"."""
    found = {}
    for path in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["summary"]:
            where = "" if path.parent == folder else f"{path.parent.name}/"
            found[where + result["benchmark"]] = result
    return found


def render(text: str, results: Results) -> str:
    """A document with every marked block replaced by its table.

    Raises:
        SystemExit: the name of a block is unknown.
    """

    def replace(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise SystemExit(f"unknown block {match[2]!r}: use one of {', '.join(BLOCKS)}")
        make, needs = BLOCKS[match[2]]
        missing = [name for name in needs if name not in results]
        body = make(results) if not missing else ""
        return match[1] + (body or "Not measured yet.\n") + match[3]

    return MARKED.sub(replace, text)


def everything(results: Results, root: Path = ROOT) -> dict[Path, str]:
    """Path → text of every file that is made from the results."""
    documents = [Path("README.md"), Path("docs", "benchmarks.md")]
    found = {path: render((root / path).read_text(encoding="utf-8"), results) for path in documents}
    return found | {PICTURES / name: text for name, text in pictures(results).items()}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    options = parser.parse_args()
    stale = []
    for path, text in everything(load_results()).items():
        file = ROOT / path
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.as_posix())
        if not options.check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    if options.check and stale:
        raise SystemExit(f"out of date with benchmarks/results: {', '.join(stale)}; run python benchmarks/report.py")
    print(f"{'would write' if options.check else 'wrote'} {', '.join(stale) or 'nothing: all files are up to date'}")


if __name__ == "__main__":
    main()
