"""Arithmetic on measured curves: Pareto front, speed at a recall, medians and ratios over rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Point = Mapping[str, Any]
Stat = dict[str, float]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both recall and QPS, by rising recall."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (-point["recall"], -point["qps"])):
        if not kept or point["qps"] > kept[-1]["qps"]:
            kept.append(point)
    return kept[::-1]


def qps_at(points: Sequence[Point], recall: float) -> float | None:
    """QPS at a recall, log-interpolated between measured points of the front; None if no point reaches it.

    If the front begins above the recall, the result is the QPS of its first point: it is never extrapolated.
    """
    before: Point | None = None
    for point in front(points):
        if point["recall"] >= recall:
            if before is None:
                return float(point["qps"])
            weight = (recall - before["recall"]) / (point["recall"] - before["recall"])
            return math.exp((1 - weight) * math.log(before["qps"]) + weight * math.log(point["qps"]))
        before = point
    return None


def fastest(points: Sequence[Point], recall: float) -> Point | None:
    """The fastest measured point of at least this recall."""
    return max((point for point in points if point["recall"] >= recall), key=lambda point: point["qps"], default=None)


def of_median_calls(points: Sequence[Point]) -> list[Point]:
    """The same points with the QPS of their median call, which excludes the few calls that wait for another process."""
    return [{**point, "qps": 1e6 / point["p50_us"]} for point in points]


#: Views of measured points: QPS of all calls, and QPS of the median call.
VIEWS: dict[str, Callable[[Sequence[Point]], list[Point]]] = {"all_calls": list, "median_call": of_median_calls}


def stat(values: Sequence[float | None]) -> Stat | None:
    """Median, minimum and maximum over rounds; None if no round has a value."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return {
        "median": significant(statistics.median(present)),
        "min": significant(min(present)),
        "max": significant(max(present)),
        "rounds": len(present),
    }


def ratio(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Stat | None:
    """Ratio of this library to another, computed within each round in which both have a value."""
    pairs = [(ours[number], theirs.get(number)) for number in ours]
    return stat([mine / other for mine, other in pairs if mine is not None and other])


def significant(value: float, digits: int = 5) -> float:
    """A value rounded for a result file; the noise is far above the fifth digit."""
    return float(f"{value:.{digits}g}")


def median_points(rounds: Sequence[Sequence[Point]]) -> list[dict[str, Any]]:
    """One curve from several: for each setting its recall and its median QPS."""
    gathered: dict[str, list[Point]] = {}
    for points in rounds:
        for point in points:
            gathered.setdefault(repr(point["setting"]), []).append(point)
    return [
        {
            "setting": same[0]["setting"],
            "recall": statistics.median(point["recall"] for point in same),
            "qps": significant(statistics.median(point["qps"] for point in same)),
        }
        for same in gathered.values()
    ]


def rounded(result: Any) -> Any:
    """A result with its floats rounded to significant digits."""
    if isinstance(result, dict):
        return {name: rounded(value) for name, value in result.items()}
    if isinstance(result, list):
        return [rounded(value) for value in result]
    return significant(result, 6) if isinstance(result, float) else result


def over_rounds(results: Sequence[Any]) -> Any:
    """Results of the same shape, every number replaced by its median and range over them."""
    first = results[0]
    if isinstance(first, Mapping):
        return {name: over_rounds([result[name] for result in results]) for name in first}
    if isinstance(first, list):
        return [over_rounds(same) for same in zip(*results, strict=True)]
    return first if isinstance(first, str) else stat(results)
