"""`medley compare`: paired tests between result files, the first against each other one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medley.cli_options import Json, Seed
from medley.tables import print_comparisons


def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            help="results.json files of `medley evaluate`, or of runs; several seeds of one model joined by commas."
        ),
    ],
    as_json: Json = False,
    seed: Seed = 13,
    by_task: Annotated[
        bool, typer.Option(help="Test each task as well as their mean; all p-values are corrected together.")
    ] = True,
) -> None:
    """Test the first result against each of the others."""
    from medley.api.compare import compare as compare_results

    given = [argument if Path(argument).is_file() else argument.split(",") for argument in results]
    print_comparisons(compare_results(*given, seed=seed, by_task=by_task).rows, as_json)
