"""Domain against general dev score of the merge candidates: the Pareto front with the chosen point marked."""

from __future__ import annotations

from medley.report.formats import Front
from medley.report.numbers import score
from medley.report.svg import Scale, curve, diamond, dot, line, padded, picture, words

WIDTH = 360


def front_chart(front: Front) -> str:
    """Each candidate as a dot, those that no other beats at both joined by a line, the chosen one a diamond."""
    top, size = 14, 200
    domain, general = ([getattr(point, kind) for point in front.scores] for kind in ("domain", "general"))
    x, y = Scale(*padded(domain), 60, WIDTH - 20), Scale(*padded(general), top + size, top)
    marks = []
    for tick in y.ticks():
        marks += [
            line(52, y(tick), WIDTH - 12, y(tick), "grid"),
            words(46, y(tick) + 4, score(tick), "tick", anchor="end"),
        ]
    marks += [words(x(tick), top + size + 18, score(tick), "tick", anchor="middle") for tick in x.ticks()]
    for point in front.scores:
        said = f"domain {score(point.domain)}, general {score(point.general)}"
        marks.append(dot(x(point.domain), y(point.general), 3, "predicted", said))
    joined = [front.scores[index] for index in front.candidates]
    marks.append(curve([(x(point.domain), y(point.general)) for point in joined], "smooth"))
    for point in joined:
        said = f"domain {score(point.domain)}, general {score(point.general)}; none is better at both"
        marks.append(dot(x(point.domain), y(point.general), 3.6, "real", said))
    chosen = front.scores[front.chosen]
    said = f"chosen: domain {score(chosen.domain)}, general {score(chosen.general)}"
    marks.append(diamond(x(chosen.domain), y(chosen.general), 7, "chosen", said))
    marks.append(words(WIDTH - 12, top + size + 36, "domain", "tick", anchor="end"))
    marks.append(words(56, top + 6, "general", "tick"))
    label = (
        f"Domain against general dev nDCG@10 of {len(front.scores)} candidates; {len(joined)} are beaten by none at "
        f"both; {said}."
    )
    return picture(WIDTH, top + size + 44, marks, label=label)
