"""How instructions were chosen, for the page: all candidates with scores and lineage, and the proof.

Input: `Run`. Output: plain values and a picture for each choice; choices that are the same share one entry.
"""

from __future__ import annotations

from typing import Any

from medley.report.formats import Prompt, TriedInstruction
from medley.report.numbers import score, variant
from medley.report.reading import Run
from medley.report.svg import Scale, diamond, dot, line, padded, picture, words

WIDTH, TOP, HEIGHT = 360, 14, 200
LEAST = 3
"""Candidates below which a picture shows nothing that the table does not."""


def instruction_values(run: Run) -> list[dict[str, Any]]:
    """The choice of instruction; experts with the same candidates and scores share one entry."""
    entries: list[dict[str, Any]] = []
    for name, prompt in run.prompts.items():
        same = next((entry for entry in entries if entry["prompt"] == prompt), None)
        if same:
            same["names"].append(variant(name))
        else:
            entries.append({"names": [variant(name)], "prompt": prompt, **_choice(prompt)})
    return entries


def _choice(prompt: Prompt) -> dict[str, Any]:
    tried = prompt.candidates
    best = max((c for c in tried if c.finished), key=lambda c: c.score, default=None)
    return {
        "candidates": sorted(tried, key=lambda c: (not c.finished, -c.score)),
        "best": best,
        "seed_score": next((c.score for c in tried if c.instruction == prompt.seed_instruction), None),
        "high": max((c.score for c in tried), default=0.0),
        "stayed": prompt.instruction == prompt.seed_instruction,
        "dropped": sum(not c.finished for c in tried),
        "picture": lineage_chart(prompt, best) if best is not None and len(tried) >= LEAST else None,
        "has_lineage": any(c.parent is not None for c in tried),
    }


def lineage_chart(prompt: Prompt, best: TriedInstruction) -> str:
    """Every candidate in the order it was tried, at its score; a line leads to it from the one it was made of."""
    tried = prompt.candidates
    y = Scale(*padded([c.score for c in tried]), TOP + HEIGHT, TOP)
    x = Scale(0, max(len(tried) - 1, 1), 52, WIDTH - 14)
    marks = [line(44, y(tick), WIDTH - 6, y(tick), "grid") for tick in y.ticks()]
    marks += [words(38, y(tick) + 4, score(tick), "tick", anchor="end") for tick in y.ticks()]
    ancestors = _line_to(tried, tried.index(best))
    for place, c in enumerate(tried):
        if c.parent is not None and 0 <= c.parent < len(tried):
            own = "whisker merged" if place in ancestors else "grid"
            marks.append(line(x(c.parent), y(tried[c.parent].score), x(place), y(c.score), own))
    seed = next((c for c in tried if c.instruction == prompt.seed_instruction), None)
    if seed is not None:
        marks.append(line(44, y(seed.score), WIDTH - 6, y(seed.score), "zero"))
        marks.append(words(48, y(seed.score) - 6, f"seed instruction {score(seed.score)}", "tick"))
    marks += [
        dot(
            x(place),
            y(c.score),
            3.4 if c.finished else 2.6,
            "real" if c.finished else "predicted",
            _described(c),
        )
        for place, c in enumerate(tried)
    ]
    place = tried.index(best)
    marks.append(diamond(x(place), y(best.score), 7, "merged full", f"best: {_described(best)}"))
    marks.append(words(48, TOP + HEIGHT + 20, "candidates, in the order they were tried", "tick"))
    marks.append(words(WIDTH - 6, TOP + HEIGHT + 20, f"{len(tried)}", "tick", anchor="end"))
    generations = len(ancestors) - 1
    label = (
        f"Dev nDCG@10 of {len(tried)} instructions, {sum(c.finished for c in tried)} tried on all choosing queries; "
        f"best {score(best.score)}"
        + (
            f", {generations} change{'s' if generations > 1 else ''} from where it began."
            if generations
            else "."
        )
    )
    return picture(WIDTH, TOP + HEIGHT + 28, marks, label=label)


def _line_to(tried: list[TriedInstruction], place: int) -> list[int]:
    """The places of a candidate and of those that it descends from, the youngest first."""
    found = [place]
    while (parent := tried[found[-1]].parent) is not None and 0 <= parent < found[-1]:
        found.append(parent)
    return found


def _described(candidate: TriedInstruction) -> str:
    seen = f" over {candidate.queries} queries" if candidate.queries is not None else ""
    return (
        f"{score(candidate.score)}{seen}, {candidate.origin or 'tried'}: {candidate.instruction or '(none)'}"
    )
