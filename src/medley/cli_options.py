"""Options that several commands have, in one place: they mean the same wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that is there already.")]
PairsFile = Annotated[
    Path, typer.Option("--pairs", help="A pairs file: JSON Lines, Parquet, CSV or a saved data set.")
]
AdapterBase = Annotated[
    str | None,
    typer.Option(
        "--base", help="The base of an adapter folder, where it is not the one that the folder names."
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, key.sub=value.")
]
