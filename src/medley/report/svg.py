"""SVG marks as strings: the few shapes that charts.py draws with, scales and ticks. Text is escaped here.

Colours and fonts are classes of report.css, so that pictures follow the page into dark mode and onto paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from medley.progress import printable


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start) if span else self.start

    def ticks(self, about: int = 4) -> list[float]:
        """Round values inside the scale, steps of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(span / about))
        step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06, *, least: float = 0.01) -> tuple[float, float]:
    """(low, high) around values with some room; never narrower than `least`."""
    low, high = min(values), max(values)
    room = max((high - low) * share, (least - (high - low)) / 2, least * share)
    return low - room, high + room


def picture(width: float, height: float, marks: Sequence[str], *, label: str) -> str:
    """A whole inline picture; `label` says in a sentence what it shows, for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(printable(label))}">{"".join(marks)}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line of a class."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def dot(x: float, y: float, radius: float, style: str, tip: str = "") -> str:
    """A disc; `tip` appears under the pointer."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{style}">{_tip(tip)}</circle>'


def diamond(x: float, y: float, radius: float, style: str, tip: str = "") -> str:
    """A square on its tip: another shape where colour alone would have to tell."""
    points = (
        f"{x:.1f},{y - radius:.1f} {x + radius:.1f},{y:.1f} {x:.1f},{y + radius:.1f} {x - radius:.1f},{y:.1f}"
    )
    return f'<polygon points="{points}" class="{style}">{_tip(tip)}</polygon>'


def bar(x: float, y: float, width: float, height: float, style: str, tip: str = "") -> str:
    """A filled rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{style}">'
        f"{_tip(tip)}</rect>"
    )


def curve(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{style}"/>'


def words(x: float, y: float, text: str, style: str = "", *, anchor: str = "start", longest: int = 80) -> str:
    """Text with its baseline at y; past `longest` characters it is cut, and whole under the pointer."""
    shown = text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
    whole = _tip(text) if shown != text else ""
    inside = escape(printable(shown)) + whole
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{inside}</text>'


def _tip(text: str) -> str:
    return f"<title>{escape(printable(text))}</title>" if text else ""
