"""What commands print: steps of a run, a table of scores, comparisons; or the same as JSON.

In: plain data from the pipeline and from result files. Out: standard output, which holds results and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from medley.progress import printable

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
        said = "; ".join(text for text in (row["why"], costs) if text)
        print(printable(f"{row['state']:8} {row['step']:32} {said}".rstrip()))
    if any("seconds" in row for row in rows):
        minutes = math.ceil(sum(row.get("seconds", 0) for row in rows) / 60)
        print(f"training and encoding: about {minutes} min on this machine")


def print_results(results: dict[str, Any], as_json: bool) -> None:
    """A table of nDCG@10: a row for each variant, a column for each task, and the mean."""
    if as_json:
        print(json.dumps(results))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    variants = results["variants"]
    tasks = list(dict.fromkeys(task for variant in variants.values() for task in variant["tasks"]))
    table = Table(title="nDCG@10")
    table.add_column("model", no_wrap=True)
    for task in tasks:
        table.add_column(Text(printable(task)), justify="right")
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
        table.add_row(Text(printable(name)), *cells)
    console = Console()
    Console(width=None if console.is_terminal else WIDTH).print(table)


def print_evaluation(table: dict[str, Any], groups: dict[str, list[str]]) -> None:
    """A row for each system, a column for each task, means of groups and of all; losses of small vectors in words.

    nDCG@10 of retrieval tasks, Spearman's correlation of sentence similarity.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tasks = list(dict.fromkeys(task for row in table.values() for task in row["tasks"]))
    grid = Table(title=Text(printable(_measures(table))))
    grid.add_column("model")
    columns = {task: [task] for task in tasks} | {f"mean {group}": names for group, names in groups.items()}
    columns["mean"] = tasks
    for column in columns:
        grid.add_column(Text(printable(column)), justify="right")
    any_chosen = False
    for name, row in table.items():
        scores = {task: _main_score(scored) for task, scored in row["tasks"].items()}
        chosen = {task for task, scored in row["tasks"].items() if "chosen_on" in scored}
        any_chosen |= bool(chosen)
        # as text: in markup, the brackets of a name would vanish
        grid.add_row(
            Text(printable(name)),
            *(
                _cell([scores[task] for task in own if task in scores]) + ("*" if chosen & set(own) else "")
                for own in columns.values()
            ),
        )
    console = Console()
    Console(width=None if console.is_terminal else max(WIDTH, 40 + 16 * len(columns))).print(grid)
    if any_chosen:
        print("* the model was chosen on queries of this task: no test")
    for name, row in table.items():
        compression = row["model"].get("compression")
        if compression:
            whole = table[name.removesuffix(f" [{compression}]")]["tasks"]
            kept = [task for task in row["tasks"] if task in whole]
            lost = sum(_main_score(row["tasks"][t]) - _main_score(whole[t]) for t in kept) / len(kept)
            size = row["model"]["bytes_a_passage"]
            print(f"{printable(name)}: {lost:+.4f} against whole vectors, {size:,} bytes a passage instead of "
                  f"{row['model']['bytes_whole']:,}")  # fmt: skip


def _measures(table: dict[str, Any]) -> str:
    """What the numbers of a table are: only the measures that are in it."""
    similar = {task: "spearman" in scored for row in table.values() for task, scored in row["tasks"].items()}
    if all(similar.values()):
        return "Spearman"
    names = ", ".join(task for task, is_similar in similar.items() if is_similar)
    return f"nDCG@10 ({names}: Spearman)" if names else "nDCG@10"


def print_published(base: str, means: Sequence[Any], tasks: Sequence[Any]) -> None:
    """A paper's figures beside one's own; a mean over fewer tasks than the paper's says so."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = Console(width=None if console.is_terminal else WIDTH)
    for title, lines, whole in (
        (f"means over 12 tasks, {base}", means, 12),
        ("STM linear by task", tasks, 1),
    ):
        if not lines:
            continue
        grid = Table(title=f"nDCG@10, {title}")
        for column in ("", "published", "own", "over tasks"):
            grid.add_column(column, justify="left" if not column else "right")
        for line in lines:
            own = "" if line.own is None else f"{line.own:.3f}"
            short = (
                f"{line.tasks} of 12" if line.own is not None and whole == 12 and line.tasks < whole else ""
            )
            grid.add_row(line.name, "" if line.published is None else f"{line.published:.3f}", own, short)
        console.print(grid)


def _main_score(task: dict[str, Any]) -> float:
    return float(task["spearman"] if "spearman" in task else task["ndcg_at_10"])


def _cell(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.4f}" if scores else ""


def print_comparisons(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A line for each comparison: difference, confidence interval, p, and the verdict in words; tasks below it."""
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        seeds = f", {row['seeds']} seeds" if row["seeds"] > 1 else ""
        print(printable(f"{row['a']} - {row['b']}: {_in_words(row)}{seeds}"))
        print(
            f"    d {row['effect_size']:+.2f}; wins/ties/losses {row['wins']}/{row['ties']}/{row['losses']}"
        )
        for task in row["by_task"]:
            print(printable(f"    {task['task']} ({task['queries']}): {_in_words(task)}"))
    if rows:
        print(f"Holm: corrected over all {rows[0]['comparisons']} comparisons above.")


def _in_words(row: dict[str, Any]) -> str:
    verdict = "no difference shown" if row["p_holm"] >= ALPHA else f"differs, {row['verdict']}"
    least = row["detectable"]
    unseen = (
        f"; with this many queries a true difference of {least:.3f} would be found (80 % power)"
        if row["p_holm"] >= ALPHA and least
        else ""
    )
    return (
        f"{row['difference']:+.4f} [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}], p = {row['p_value']:.4f}, "
        f"Holm {row['p_holm']:.4f}: {verdict}{unseen}"
    )
