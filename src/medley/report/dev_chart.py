"""The curve on dev of one training: its score at every step looked at, the base's as a line, the choice marked."""

from __future__ import annotations

from medley.report.formats import DevCurve, DevPoint
from medley.report.numbers import score, signed
from medley.report.svg import Scale, curve, diamond, dot, line, padded, picture, words

WIDTH, TOP, HEIGHT = 250, 12, 80


def dev_chart(dev: DevCurve, *, name: str) -> str:
    """Scores over steps; parts of an update stand as hollow marks at the step that they are parts of."""
    every = [*dev.points, *dev.shrunken]
    x = Scale(0, max(point.step for point in every) or 1, 40, WIDTH - 12)
    y = Scale(*padded([point.score for point in every]), TOP + HEIGHT, TOP)
    base = dev.points[0]
    marks = [line(40, y(tick), WIDTH - 8, y(tick), "grid") for tick in y.ticks(3)]
    marks += [words(34, y(tick) + 4, score(tick), "tick", anchor="end") for tick in y.ticks(3)]
    marks.append(line(40, y(base.score), WIDTH - 8, y(base.score), "zero"))
    marks.append(curve([(x(point.step), y(point.score)) for point in dev.points], "smooth"))
    marks += [dot(x(p.step), y(p.score), 2.5, "other full", _tip(p)) for p in dev.points]
    marks += [dot(x(p.step), y(p.score), 2.5, "other hollow", _tip(p)) for p in dev.shrunken]
    marks.append(diamond(x(dev.chosen.step), y(dev.chosen.score), 5.5, "chosen", _tip(dev.chosen)))
    marks.append(words(40, TOP + HEIGHT + 17, "step 0: base", "tick"))
    marks.append(words(WIDTH - 8, TOP + HEIGHT + 17, f"{dev.points[-1].step}", "tick", anchor="end"))
    return picture(WIDTH, TOP + HEIGHT + 24, marks, label=f"Dev nDCG@10 of {name}: {in_words(dev)}.")


def in_words(dev: DevCurve) -> str:
    """What was kept and what it gained on dev."""
    base, chosen = dev.points[0], dev.chosen
    if chosen.step == 0:
        return f"no step was better than the base's {score(base.score)}, so it stays the base"
    part = "" if chosen.scale == 1 else f", {chosen.scale:g} of its update"
    early = ", stopped early" if dev.stopped_early else ""
    gain = f"{score(base.score)} to {score(chosen.score)} ({signed(chosen.score - base.score)})"
    return f"{gain} at step {chosen.step}{part}{early}"


def _tip(point: DevPoint) -> str:
    part = "" if point.scale == 1 else f", {point.scale:g} of its update"
    return f"step {point.step}{part}: {score(point.score)}"
