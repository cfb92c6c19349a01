"""Charts as inline SVG, without scripts, fonts or other files, in the light or dark colours of the page.

Series differ in dashes and marks as well as in colour. Colours are classes (`s0`, `s1`, ...) of the page's style sheet, so
that a chart follows `prefers-color-scheme`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kerasseg.report.wording import is_number

_WIDTH = 480
"""Width of a chart in units: on a phone with 360 pixels its text of 15 units is still 11 pixels high."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 46


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart.

    Attributes:
        name: Name in the legend.
        x, y: Points; None or NaN in `y` breaks the line.
        low, high: Interval at each point; empty for none.
        marks: Whether points are drawn.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """A value with its interval in a row of an interval chart; None or NaN if unknown."""

    value: float | None
    low: float | None
    high: float | None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers between two limits.

    >>> ticks(0, 1), ticks(0.83, 0.97)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96])
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    # The widest step that leaves at least `about - 1` intervals.
    step = max(power * factor for factor in (1, 2, 5, 10) if power * factor <= span / (about - 1))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    describe: str,
    x_label: str,
    y_label: str,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    height: int = 300,
    diagonal: bool = False,
    places: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw lines over a plane."""
    across = [value for line in lines for value in line.x] + [value for value, _ in places]
    up = _numbers(v for line in lines for v in (*line.y, *line.low, *line.high))
    limits = x or _limits(across), y or _limits(up)
    plane = _Plane(*limits, height)
    parts = [_frame(plane, x_label, y_label)]
    if diagonal:
        (x0, y0), (x1, y1) = plane.at(limits[0][0], limits[0][0]), plane.at(limits[0][1], limits[0][1])
        parts.append(Markup('<path class="guide" d="M{} {}L{} {}"/>').format(x0, y0, x1, y1))
    for place, name in places:
        parts.append(_place(plane, place, name))
    for i, line in enumerate(lines):
        parts.append(_line(plane, line, i))
    legend = _legend([line.name for line in lines]) if len(lines) > 1 else Markup("")
    return _svg(parts, height, describe) + legend


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Span]]],
    names: Sequence[str],
    *,
    describe: str,
    x_label: str,
    zero: bool = False,
) -> Markup:
    """Draw a row per category, with a dot and a bar (the interval) for each series."""
    values = _numbers(v for _, spans in rows for s in spans for v in (s.value, s.low, s.high))
    step = 14
    band = 26 + step * len(names)
    height = _TOP + band * len(rows) + _BOTTOM
    plane = _Plane(_limits([*values, 0.0] if zero else values), (0, 1), height, left=14)
    parts = [_axis_below(plane, x_label)]
    if zero:
        parts.append(_place(plane, 0.0, ""))
    for i, (category, spans) in enumerate(rows):
        top = _TOP + band * i
        parts.append(Markup('<text x="14" y="{}" class="name">{}</text>').format(top + 14, category))
        for k, span in enumerate(spans):
            parts.append(_span(plane, span, top + 26 + step * k, k))
    legend = _legend(names) if len(names) > 1 else Markup("")
    return _svg(parts, height, describe) + legend


def strip_chart(rows: Sequence[tuple[str, Sequence[float]]], *, describe: str, x_label: str) -> Markup:
    """A row of dots per category, one dot per value, spread over the row's height so that they overlap little."""
    band, spread = 62, 26
    height = _TOP + band * len(rows) + _BOTTOM
    plane = _Plane((0, 1), (0, 1), height, left=14)
    parts = [_axis_below(plane, x_label)]
    for i, (category, values) in enumerate(rows):
        top = _TOP + band * i
        parts.append(Markup('<text x="14" y="{}" class="name">{}</text>').format(top + 14, category))
        # Steps of the golden ratio spread neighbours evenly, and the same values give the same picture.
        dots = "".join(
            f"M{plane.across(value)} {top + 24 + spread * (k * 0.618034 % 1):.1f}h0"
            for k, value in enumerate(sorted(_numbers(values)))
        )
        parts.append(Markup('<path class="dots s{}" d="{}"/>').format(i % 3, dots))
    return _svg(parts, height, describe)


# --- the plane -----------------------------------------------------------------------------------------------------------


class _Plane:
    """Mapping from values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int, left: int = _LEFT) -> None:
        self.x, self.y, self.height, self.left = x, y, height, left
        self.right, self.bottom = _WIDTH - _RIGHT, height - _BOTTOM

    def at(self, x: float, y: float) -> tuple[str, str]:
        """Return the place of a point, rounded to a tenth of a unit."""
        return self.across(x), self.down(y)

    def across(self, x: float) -> str:
        """Return the place along the x axis."""
        low, high = self.x
        return f"{self.left + (self.right - self.left) * (float(x) - low) / (high - low):.1f}"

    def down(self, y: float) -> str:
        """Return the place along the y axis."""
        low, high = self.y
        return f"{self.bottom - (self.bottom - _TOP) * (float(y) - low) / (high - low):.1f}"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits around all values with a margin; shares stay within 0 and 1."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = max((high - low) * 0.06, 0.004)
    within = low >= 0 and high <= 1
    return (max(low - air, 0.0), min(high + air, 1.0)) if within else (low - air, high + air)


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if is_number(value)]


# --- parts ---------------------------------------------------------------------------------------------------------------


def _svg(parts: Sequence[Markup], height: int, describe: str) -> Markup:
    # An attribute instead of <title>, which browsers would show as a tooltip over the whole chart.
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, describe, Markup("").join(parts)
    )


def _frame(plane: _Plane, x_label: str, y_label: str) -> Markup:
    parts = []
    for value in ticks(*plane.y, about=5 if plane.height >= 280 else 3):
        y = plane.down(value)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(plane.left, y, plane.right))
        parts.append(_text(plane.left - 7, y, f"{value:g}", "tick end middle"))
    if y_label:
        turned = Markup('<text class="label centre" transform="translate(14 {})rotate(-90)">{}</text>')
        parts.append(turned.format((_TOP + plane.bottom) / 2, y_label))
    return _axis_below(plane, x_label) + Markup("").join(parts)


def _axis_below(plane: _Plane, label: str) -> Markup:
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(plane.left, plane.bottom, plane.right)]
    for value in ticks(*plane.x):
        x = plane.across(value)
        parts.append(Markup('<path class="axis" d="M{} {}v4"/>').format(x, plane.bottom))
        parts.append(_text(x, plane.bottom + 19, f"{value:g}", "tick centre"))
    parts.append(_text((plane.left + plane.right) / 2, plane.height - 6, label, "label centre"))
    return Markup("").join(parts)


def _place(plane: _Plane, place: float, name: str) -> Markup:
    x = plane.across(place)
    line = Markup('<path class="guide" d="M{} {}V{}"/>').format(x, _TOP, plane.bottom)
    # On the side with more room.
    end = float(x) > (plane.left + plane.right) / 2
    return line + _text(float(x) + (-6 if end else 6), plane.bottom - 8, name, "tick end" if end else "tick")


def _line(plane: _Plane, line: Line, number: int) -> Markup:
    parts = []
    points = [plane.at(x, y) if is_number(y) else None for x, y in zip(line.x, line.y, strict=True)]
    band = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=False)
        if is_number(low) and is_number(high)
    ]
    if band:
        around = [plane.at(x, high) for x, _, high in band] + [plane.at(x, low) for x, low, _ in reversed(band)]
        path = "M" + "L".join(f"{x} {y}" for x, y in around) + "Z"
        parts.append(Markup('<path class="band s{}" d="{}"/>').format(number, path))
    pieces = [list(piece) for known, piece in itertools.groupby(points, bool) if known]
    path = "".join("M" + "L".join(f"{x} {y}" for x, y in filter(None, piece)) for piece in pieces)
    parts.append(Markup('<path class="line s{}" d="{}"/>').format(number, path))
    if line.marks:
        parts += [_mark(float(x), float(y), number) for x, y in filter(None, points)]
    return Markup("").join(parts)


def _span(plane: _Plane, span: Span, y: float, number: int) -> Markup:
    if not is_number(span.value):
        return _text(plane.left, y + 4, "none", "tick")
    parts = []
    if is_number(span.low) and is_number(span.high):
        ends = plane.across(span.low), plane.across(span.high)
        parts.append(Markup('<path class="whisker s{}" d="M{} {}H{}"/>').format(number, ends[0], y, ends[1]))
    parts.append(_mark(float(plane.across(span.value)), y, number))
    return Markup("").join(parts)


def _mark(x: float, y: float, number: int) -> Markup:
    """Draw a disk, a square or a triangle."""
    shape = number % 3
    if shape == 0:
        return Markup('<circle class="mark s{}" cx="{}" cy="{}" r="4"/>').format(number, x, y)
    path = f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z" if shape == 1 else f"M{x:.1f} {y - 5:.1f}l5 9h-10z"
    return Markup('<path class="mark s{}" d="{}"/>').format(number, path)


def _legend(names: Sequence[str]) -> Markup:
    items = [
        Markup(
            '<li><svg viewBox="0 0 34 12" aria-hidden="true"><path class="line s{}" d="M0 6H34"/>{}</svg>{}</li>'
        ).format(i, _mark(17, 6, i), name)
        for i, name in enumerate(names)
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _text(x: object, y: object, text: str, kind: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, y, kind, text) if text else Markup("")
