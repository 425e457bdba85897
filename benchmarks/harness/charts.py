"""Line charts as small SVG files: the same numbers give the same bytes, so a test can compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

# Okabe and Ito's colours, which people with any colour vision can distinguish; the first is for this library.
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#999999")
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 215, 44, 52


class Series(NamedTuple):
    """A line: points in the order of x; its colour is a number of COLOURS, and number 0 is drawn thick."""

    name: str
    points: list[tuple[float, float]]
    colour: int


class Axis(NamedTuple):
    """An axis: its title, its marks, and the function from value to position."""

    title: str
    ticks: list[tuple[float, str]]
    scale: Callable[[float], float]


def recall_axis(points: Sequence[float]) -> Axis:
    """An axis of recall, stretched towards 1, where small differences matter."""
    marks = [mark for mark in (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998) if mark >= min(points, default=0.7)]
    return Axis("recall@10", [(mark, f"{mark:g}") for mark in marks], lambda recall: -math.log10(1.0005 - recall))


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis with marks at powers of ten, and between them if the range is short."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: tuple[float, ...] = (1,)
    if high / low < 80:
        steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 5, 7)
    marks = [step * 10.0**power for power in powers for step in steps]
    kept = [mark for mark in marks if 0.9 * low <= mark <= 1.1 * high]
    return Axis(title, [(mark, short(mark)) for mark in kept], math.log10)


def marked_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis with a mark at each value."""
    return Axis(title, [(value, short(value)) for value in sorted(set(values))], math.log10)


def short(value: float) -> str:
    """1000 as 1 K, a million as 1 M."""
    for size, letter in ((1e6, " M"), (1e3, " K")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def line_chart(title: str, x_axis: Axis, y_axis: Axis, lines: Sequence[Series]) -> str:
    """The chart as the text of an SVG file."""
    xs = [x_axis.scale(x) for line in lines for x, _ in line.points]
    ys = [y_axis.scale(y) for line in lines for _, y in line.points]
    across = _span(xs + [x_axis.scale(x) for x, _ in x_axis.ticks], LEFT, WIDTH - RIGHT)
    down = _span(ys + [y_axis.scale(y) for y, _ in y_axis.ticks], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for value, label in x_axis.ticks:
        at = across(x_axis.scale(value))
        parts += [
            f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>',
            f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>',
        ]
    for value, label in y_axis.ticks:
        at = down(y_axis.scale(value))
        parts += [
            f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{label}</text>',
        ]
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_axis.title)}</text>',
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_axis.title)}</text>",
    ]
    for number, line in enumerate(lines):
        parts += _line(number, line, [(across(x_axis.scale(x)), down(y_axis.scale(y))) for x, y in line.points])
    return "\n".join([*parts, "</svg>", ""])


def _line(number: int, line: Series, places: list[tuple[float, float]]) -> list[str]:
    """A line, its points and its entry in the legend."""
    colour, width = COLOURS[line.colour % len(COLOURS)], 1.6 if line.colour else 3
    path = " ".join(f"{x},{y}" for x, y in places)
    key, row = WIDTH - RIGHT + 16, TOP + 12 + 22 * number
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>',
        *(f'<circle cx="{x}" cy="{y}" r="{1.2 * width}" fill="{colour}"/>' for x, y in places),
        f'<path d="M{key} {row - 4}h20" stroke="{colour}" stroke-width="{width}"/>',
        f'<text x="{key + 26}" y="{row}">{escape(line.name)}</text>',
    ]


def _span(values: list[float], start: float, end: float) -> Callable[[float], float]:
    """The function that maps the range of the values to a range of the picture."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    width = high - low or 1.0
    return lambda value: round(start + (end - start) * (0.03 + 0.94 * (value - low) / width), 1)
