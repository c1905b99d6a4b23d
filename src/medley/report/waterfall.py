"""Two more pictures: the way from the base to merged as a waterfall, and dev beside test as a scatter."""

from __future__ import annotations

from collections.abc import Sequence

from medley.report.helped import Step
from medley.report.numbers import interval, score, signed, variant
from medley.report.reading import MERGED
from medley.report.svg import Scale, bar, diamond, dot, line, padded, picture, words

WIDTH = 360


def waterfall_chart(steps: Sequence[Step]) -> str:
    """A bar for each step, from the height before to the height after; whiskers are 95 % intervals."""
    rows = [("base", 0.0, steps[0].start, None), *((s.name, s.start, s.end, s) for s in steps)]
    rows.append(("merged", 0.0, steps[-1].end, None))
    heights = [
        edge for s in steps for edge in (s.start, s.end, s.start + (s.low or 0), s.start + (s.high or 0))
    ]
    low, high = padded(heights, 0.25)
    x = Scale(max(0.0, low), high, 8, WIDTH - 58)
    marks = [line(x(tick), 6, x(tick), 6 + 46 * len(rows), "grid") for tick in x.ticks()]
    marks += [words(x(tick), 22 + 46 * len(rows), score(tick), "tick", anchor="middle") for tick in x.ticks()]
    for row, (name, start, end, step) in enumerate(rows):
        y = 8 + 46 * row
        left, right = sorted((x(max(start, x.low)), x(end)))
        style = "tie" if step is None else "win" if end >= start else "lost"
        figure = score(end) if step is None else signed(end - start)
        marks += [
            words(8, y + 12, name, "name strong" if step is None else "name", longest=44),
            bar(left, y + 17, max(right - left, 1.5), 16, style, f"{name}: {figure}"),
            words(WIDTH - 2, y + 30, figure, "figure", anchor="end"),
        ]
        if step is not None and step.low is not None and step.high is not None:
            marks.append(line(x(start + step.low), y + 25, x(start + step.high), y + 25, "whisker ink"))
    said = "; ".join(
        f"{s.name} {signed(s.end - s.start)}"
        + (f" (95% interval {interval(s.low, s.high)})" if s.low is not None and s.high is not None else "")
        for s in steps
    )
    label = f"From the base, {score(steps[0].start)}, to merged, {score(steps[-1].end)}: {said}."
    return picture(WIDTH, 30 + 46 * len(rows), marks, label=label)


def scatter_chart(points: Sequence[tuple[str, float, float]]) -> str:
    """Dev score against test score of variants; merged is a diamond. Far from the others: luck on dev, or bad luck."""
    top, size = 14, 200
    left, right = padded([dev for _, dev, _ in points], 0.15)
    low, high = padded([test for *_, test in points], 0.15)
    x, y = Scale(left, right, 56, WIDTH - 16), Scale(low, high, top + size, top)
    marks = [line(50, y(tick), WIDTH - 10, y(tick), "grid") for tick in y.ticks()]
    marks += [words(44, y(tick) + 4, score(tick), "tick", anchor="end") for tick in y.ticks()]
    marks += [words(x(tick), top + size + 18, score(tick), "tick", anchor="middle") for tick in x.ticks()]
    for name, dev, test in points:
        tip = f"{variant(name)}: dev {score(dev)}, test {score(test)}"
        own = name == MERGED
        marks.append(
            diamond(x(dev), y(test), 7, "merged full", tip)
            if own
            else dot(x(dev), y(test), 4.5, "other full", tip)
        )
        end = x(dev) > WIDTH * 0.6
        marks.append(
            words(x(dev) + (-9 if end else 9), y(test) - 7, variant(name), "name strong" if own else "name",
                  anchor="end" if end else "start", longest=22)
        )  # fmt: skip
    marks.append(words(WIDTH - 10, top + size + 36, "dev nDCG@10", "tick", anchor="end"))
    marks.append(words(50, top - 3, "test nDCG@10", "tick"))
    said = "; ".join(f"{variant(name)} dev {score(dev)}, test {score(test)}" for name, dev, test in points)
    return picture(WIDTH, top + size + 44, marks, label=f"Dev beside test: {said}.")
