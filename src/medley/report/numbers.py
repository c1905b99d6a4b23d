"""How numbers and names are written everywhere in the report: `.512`, `+.034`, `p < .001`, `2 min 5 s`."""

from __future__ import annotations

from medley.report.reading import ALL, BASE, BM25, EXPERT, MERGED

MINUS = "−"
THIN, HARD = "\u202f", "\u00a0"
"""Spaces that don't break: a narrow one between thousands, a full one elsewhere."""


def score(value: float | None) -> str:
    """A score between 0 and 1 as the field prints it: `.512`; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{abs(value):.3f}"
    return (MINUS if value < 0 and float(text) else "") + (text[1:] if text.startswith("0") else text)


def signed(value: float) -> str:
    """A difference of scores: `+.034`, `−.012`, `.000`."""
    text = score(value)
    return f"+{text}" if value > 0 and float(f"{value:.3f}") else text


def p_value(p: float) -> str:
    """`p < .001`, `p = .004`, `p = .03`, unbreakable."""
    text = p_alone(p)
    return f"p{HARD}{text}" if text.startswith("<") else f"p{HARD}={HARD}{text}"


def p_alone(p: float) -> str:
    """The same for a table's cell: `< .001`, `.004`, `.03`."""
    if p < 0.001:
        return f"<{HARD}.001"
    if p > 0.995:
        return "1"
    return (f"{p:.3f}" if p < 0.01 else f"{p:.2f}").removeprefix("0")


def interval(low: float, high: float) -> str:
    """A confidence interval: `+.010 to +.054`."""
    return f"{signed(low)} to {signed(high)}"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", THIN)


def duration(seconds: float) -> str:
    """A length of time in the unit that fits."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(value: float) -> str:
    """A loss or a coefficient, as short as it can be: `0.3`, `1.25`."""
    return f"{value:.3g}"


def variant(name: str) -> str:
    """A variant in a table."""
    known = {MERGED: "merged", BASE: "base", BM25: "BM25", ALL: "all data", "pretrained": "pre-trained base"}
    return known.get(name, name.removeprefix(EXPERT) if name.startswith(EXPERT) else name)


def variant_in_words(name: str) -> str:
    """A variant in a sentence."""
    known = {
        MERGED: "the merged model", BASE: "the base", BM25: "BM25", ALL: "one model trained on all data",
        "pretrained": "the pre-trained base",
    }  # fmt: skip
    return known.get(name, f"the expert {name.removeprefix(EXPERT)}" if name.startswith(EXPERT) else name)
