"""The pictures: findings in, inline SVG out. At most 360 wide, so that two stand side by side or one on a phone.

A filled mark means that the interval leaves out zero, a hollow one that it does not; shape and fill always
say what colour says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medley.report.findings import Difference, Tally
from medley.report.formats import Candidate, Coefficient, LossPoint
from medley.report.numbers import interval, p_value, plain, score, signed, variant
from medley.report.reading import MERGED
from medley.report.svg import Scale, bar, curve, diamond, dot, line, padded, picture, words

WIDTH = 360
ROW = 26
LABEL = 118
"""Width of the column of names."""
NAME_LENGTH = 17


def differences_chart(
    differences: Sequence[Difference], limits: tuple[float, float], *, title: str, base_score: float | None
) -> str:
    """Each variant's difference to the base, with its interval, on the scale that all panels share."""
    top, height = 10, ROW * len(differences)
    x = Scale(*limits, LABEL + 8, WIDTH - 54)
    marks = [
        line(x(tick), top, x(tick), top + height, "zero" if tick == 0 else "grid")
        for tick in {*x.ticks(), 0.0}
    ]
    marks += [words(x(tick), top + height + 16, signed(tick), "tick", anchor="middle") for tick in x.ticks()]
    marks.append(words(x(0), top + height + 32, f"base {score(base_score)}", "tick strong", anchor="middle"))
    for row, found in enumerate(differences):
        y = top + ROW * (row + 0.5)
        own = "merged" if found.a == MERGED else "other"
        fill = "full" if found.low > 0 or found.high < 0 else "hollow"
        tip = f"{variant(found.a)}: {signed(found.value)}, 95% interval {interval(found.low, found.high)}"
        marks += [
            words(LABEL, y + 4, variant(found.a), "name strong" if own == "merged" else "name", anchor="end",
                  longest=NAME_LENGTH),
            line(x(found.low), y, x(found.high), y, f"whisker {own}"),
            dot(x(found.value), y, 5.5 if own == "merged" else 4.5, f"{own} {fill}", tip),
            words(WIDTH - 2, y + 4, signed(found.value), "figure", anchor="end"),
        ]  # fmt: skip
    said = "; ".join(f"{variant(d.a)} {signed(d.value)} ({interval(d.low, d.high)})" for d in differences)
    return picture(WIDTH, top + height + 40, marks, label=f"{title}: difference to the base. {said}.")


def interval_chart(found: Difference, limits: tuple[float, float]) -> str:
    """One difference as a whisker on a line with zero, for a tile."""
    x = Scale(*limits, 6, 214)
    own = {"better": "merged", "worse": "loss", "open": "other"}[found.word]
    marks = [
        line(6, 13, 214, 13, "grid"),
        line(x(0), 3, x(0), 23, "zero"),
        line(x(found.low), 13, x(found.high), 13, f"whisker {own}"),
        dot(x(found.value), 13, 5, f"{own} {'full' if found.word != 'open' else 'hollow'}"),
    ]
    said = f"{signed(found.value)}, 95% interval {interval(found.low, found.high)}, {p_value(found.p_holm)}"
    return picture(220, 26, marks, label=said)


def candidates_chart(
    candidates: Sequence[Candidate], best: Candidate, experts_alone: Mapping[str, float]
) -> str:
    """Dev scores of all candidates, sorted; measured ones dark, predicted ones pale, the chosen one marked.

    A line shows what the best expert alone reaches, where the search measured that.
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    top, height = 14, 200
    low, high = padded([c.score for c in ranked] + list(experts_alone.values()) + [best.score])
    y = Scale(low, high, top + height, top)
    x = Scale(0, max(len(ranked) - 1, 1), 52, WIDTH - 14)
    marks = [line(44, y(tick), WIDTH - 6, y(tick), "grid") for tick in y.ticks()]
    marks += [words(38, y(tick) + 4, score(tick), "tick", anchor="end") for tick in y.ticks()]
    if experts_alone:
        name = max(experts_alone, key=lambda expert: experts_alone[expert])
        level = y(experts_alone[name])
        marks.append(line(44, level, WIDTH - 6, level, "zero"))
        marks.append(
            words(
                48, level - 6, f"best expert alone, {name}: {score(experts_alone[name])}", "tick", longest=44
            )
        )
    for real in (False, True):
        marks += [
            dot(x(rank), y(c.score), 3.4 if real else 2.6, "real" if real else "predicted", _described(c))
            for rank, c in enumerate(ranked)
            if c.real == real
        ]
    place = next((rank for rank, c in enumerate(ranked) if c.real and c.coefficients == best.coefficients), 0)
    marks.append(diamond(x(place), y(best.score), 7, "merged full", f"chosen: {_described(best)}"))
    marks.append(words(x(place) + 11, y(best.score) - 6, f"chosen {score(best.score)}", "name strong"))
    marks.append(words(48, top + height + 20, "candidates, best first", "tick"))
    marks.append(words(WIDTH - 6, top + height + 20, f"{len(ranked)}", "tick", anchor="end"))
    measured = sum(candidate.real for candidate in ranked)
    label = (
        f"Dev nDCG@10 of {len(ranked)} candidates, {measured} measured, {len(ranked) - measured} predicted; "
        f"from {score(ranked[-1].score)} to {score(ranked[0].score)}; chosen {score(best.score)}."
    )
    return picture(WIDTH, top + height + 28, marks, label=label)


def _described(candidate: Candidate) -> str:
    weights = ", ".join(f"{name} {_coefficient(value)}" for name, value in candidate.coefficients.items())
    return f"{score(candidate.score)} {'measured' if candidate.real else 'predicted'}: {weights}"


def _coefficient(value: Coefficient) -> str:
    return " / ".join(plain(part) for part in value) if isinstance(value, list) else plain(value)


def agreement_chart(pairs: Sequence[tuple[float, float]]) -> str:
    """Predicted against measured dev score, with the line of equality."""
    top, size = 14, 200
    low, high = padded([value for pair in pairs for value in pair])
    x, y = Scale(low, high, 60, WIDTH - 20), Scale(low, high, top + size, top)
    marks = [line(x(low), y(low), x(high), y(high), "zero")]
    for tick in y.ticks():
        marks += [
            line(52, y(tick), WIDTH - 12, y(tick), "grid"),
            words(46, y(tick) + 4, score(tick), "tick", anchor="end"),
        ]
        marks.append(words(x(tick), top + size + 18, score(tick), "tick", anchor="middle"))
    marks += [dot(x(a), y(b), 3.6, "real", f"predicted {score(a)}, measured {score(b)}") for a, b in pairs]
    marks.append(words(WIDTH - 12, top + size + 36, "predicted by the surrogate", "tick", anchor="end"))
    marks.append(words(56, top + 6, "measured", "tick"))
    return picture(
        WIDTH,
        top + size + 44,
        marks,
        label=f"Predicted against measured dev nDCG@10 of {len(pairs)} candidates.",
    )


def coefficients_chart(coefficients: Mapping[str, Coefficient]) -> str:
    """The chosen coefficient of each expert, one bar for each depth segment."""
    rows = [(name, value if isinstance(value, list) else [value]) for name, value in coefficients.items()]
    values = [part for _, parts in rows for part in parts]
    x = Scale(min(0.0, *values), max(*values, 0.0) or 1.0, LABEL + 10, WIDTH - 44)
    marks, y = [], 8.0
    for name, parts in rows:
        thickness = 16 if len(parts) == 1 else 9
        block = len(parts) * (thickness + 2)
        marks.append(words(LABEL, y + block / 2 + 4, name, "name", anchor="end", longest=NAME_LENGTH))
        for segment, part in enumerate(parts):
            left, right = sorted((x(0), x(part)))
            tip = f"{name}, segment {segment + 1} of {len(parts)}: {plain(part)}" if len(parts) > 1 else ""
            marks.append(bar(left, y, right - left, thickness, "merged bar", tip))
            marks.append(
                words(right + 6, y + thickness - (3.5 if thickness > 10 else 0.5), plain(part), "figure")
            )
            y += thickness + 2
        y += 8
    marks.append(line(x(0), 4, x(0), y - 4, "zero"))
    said = ", ".join(f"{name} {_coefficient(value)}" for name, value in coefficients.items())
    return picture(WIDTH, y, marks, label=f"Chosen coefficients: {said}.")


def losses_chart(losses: Sequence[LossPoint], limits: tuple[float, float], *, name: str) -> str:
    """The loss after every step, and its running mean, on the scale that all experts share."""
    width, top, height = 250, 12, 96
    x = Scale(losses[0].step, losses[-1].step, 34, width - 8)
    y = Scale(*limits, top + height, top)
    smooth = running_mean([point.loss for point in losses])
    marks = [line(34, y(tick), width - 8, y(tick), "grid") for tick in y.ticks(3)]
    marks += [words(28, y(tick) + 4, plain(tick), "tick", anchor="end") for tick in y.ticks(3)]
    marks.append(curve([(x(point.step), y(point.loss)) for point in losses], "raw"))
    marks.append(
        curve([(x(point.step), y(value)) for point, value in zip(losses, smooth, strict=True)], "smooth")
    )
    marks.append(words(34, top + height + 17, f"step {plain(losses[0].step)}", "tick"))
    marks.append(words(width - 8, top + height + 17, f"{losses[-1].step:g}", "tick", anchor="end"))
    label = f"Training loss of {name}: running mean from {plain(smooth[0])} to {plain(smooth[-1])}."
    return picture(width, top + height + 24, marks, label=label)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the values around each one, over a tenth of the curve."""
    reach = max(len(values) // 20, 0)
    return [
        sum(values[max(0, i - reach) : i + reach + 1]) / len(values[max(0, i - reach) : i + reach + 1])
        for i in range(len(values))
    ]


def tally_chart(tallies: Sequence[Tally]) -> str:
    """Wins, ties and losses as one divided bar for each row."""
    x = Scale(0, 1, LABEL + 8, WIDTH - 4)
    marks = []
    for row, tally in enumerate(tallies):
        y, total = 6 + row * 30, tally.wins + tally.ties + tally.losses
        marks.append(words(LABEL, y + 15, tally.task, "name", anchor="end", longest=NAME_LENGTH))
        start = 0
        for number, style in ((tally.wins, "win"), (tally.ties, "tie"), (tally.losses, "lost")):
            left, right = x(start / total), x((start + number) / total)
            marks.append(bar(left, y, right - left - 1.5, 21, style))
            if right - left > 18:
                marks.append(
                    words((left + right) / 2, y + 15, str(number), f"inside {style}", anchor="middle")
                )
            start += number
    said = "; ".join(f"{t.task}: {t.wins} better, {t.ties} equal, {t.losses} worse" for t in tallies)
    return picture(
        WIDTH, 6 + 30 * len(tallies), marks, label=f"Queries of merged against {tallies[0].variant}. {said}."
    )
