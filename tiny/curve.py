"""Draw the loss curve of the bundled model: python tiny/curve.py tiny/loss.jsonl loss.svg"""

import json
import sys
from pathlib import Path

STAGES = {
    "lm": "language modelling",
    "words": "word vectors, contrastive",
    "contrastive": "whole model, contrastive",
}
WIDTH, HEIGHT, MARGIN = 300, 200, 34


def panel(title: str, points: list[tuple[int, float]]) -> str:
    """One stage: loss against step, with the ends of both axes labelled."""
    top, last = max(loss for _, loss in points), points[-1][0]
    wide, high = (WIDTH - 2 * MARGIN) / last, (HEIGHT - 2 * MARGIN) / top
    places = ((MARGIN + wide * step, HEIGHT - MARGIN - high * loss) for step, loss in points)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    left, bottom, right = MARGIN, HEIGHT - MARGIN, WIDTH - MARGIN
    return (
        f'<text x="{WIDTH / 2}" y="18" text-anchor="middle">{title}</text>'
        f'<path d="M{left},{MARGIN} V{bottom} H{right}" fill="none" stroke="#888"/>'
        f'<text x="{left - 4}" y="{MARGIN + 4}" text-anchor="end">{top:.1f}</text>'
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">step {last}</text>'
        f'<polyline points="{line}" fill="none" stroke="#1f6fb4" stroke-width="2"/>'
    )


def main() -> None:
    """Read the log, write the picture."""
    entries = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    panels = []
    for number, (stage, title) in enumerate(STAGES.items()):
        points = [(entry["step"], entry["loss"]) for entry in entries if entry["stage"] == stage]
        panels.append(f'<g transform="translate({number * WIDTH})">{panel(title, points)}</g>')
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    Path(sys.argv[2]).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><g {style}>{"".join(panels)}</g></svg>\n'
    )


if __name__ == "__main__":
    main()
