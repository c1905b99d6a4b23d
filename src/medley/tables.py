"""What commands print: steps of a run, a table of scores, comparisons; or the same as JSON.

In: plain data from the pipeline and from result files. Out: standard output, which holds results and nothing else.
"""

from __future__ import annotations

import json
from typing import Any

ALPHA = 0.05
"""Below this corrected p a difference is said to be shown."""
WIDTH = 120
"""Columns of a table that is not printed on a terminal."""


def print_steps(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A line for each step of a run: its state, its name, why it is stale, what it would cost."""
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        costs = ", ".join(
            f"{value:,.{2 if key.endswith('usd') else 0}f} {key.replace('_', ' ')}"
            for key, value in row.items()
            if key not in ("step", "state", "why")
        )
        print(
            f"{row['state']:8} {row['step']:32} {'; '.join(text for text in (row['why'], costs) if text)}".rstrip()
        )


def print_results(results: dict[str, Any], as_json: bool) -> None:
    """A table of nDCG@10: a row for each variant, a column for each task, and the mean."""
    if as_json:
        print(json.dumps(results))
        return
    from rich.console import Console
    from rich.table import Table

    variants = results["variants"]
    tasks = list(dict.fromkeys(task for variant in variants.values() for task in variant["tasks"]))
    table = Table(title="nDCG@10")
    table.add_column("model", no_wrap=True)
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_column("mean", justify="right")
    if "comparisons" in results:
        table.add_column("merged is better by", justify="right")
        table.add_column("p (Holm)", justify="right")
    against = {row["b"]: row for row in results.get("comparisons", [])}
    for name, variant in variants.items():
        scores = [variant["tasks"][task]["ndcg_at_10"] for task in tasks if task in variant["tasks"]]
        cells = [f"{score:.4f}" for score in scores] + [f"{sum(scores) / len(scores):.4f}"]
        if name in against:
            cells += [f"{against[name]['difference']:+.4f}", f"{against[name]['p_holm']:.4f}"]
        table.add_row(name, *cells)
    console = Console()
    Console(width=None if console.is_terminal else WIDTH).print(table)


def print_comparisons(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A line for each comparison: difference, confidence interval, p, and the verdict in words."""
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        verdict = "differs" if row["p_holm"] < ALPHA else "no difference shown"
        print(
            f"{row['a']} - {row['b']}: {row['difference']:+.4f} "
            f"[{row['ci_low']:+.4f}, {row['ci_high']:+.4f}], p = {row['p_value']:.4f}, "
            f"Holm {row['p_holm']:.4f}: {verdict}"
        )
