"""Named paragraphs that complete a prompt, and how one is drawn: kinds of negatives, styles of queries, kinds of tasks.

In: a YAML file `name: {weight, text}` and the user's weights. Out: names drawn by weight. The files stand beside this
module; a user's own file may replace one, with names of its own.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medley.errors import InputError
from medley.yaml_file import read_yaml

Weights = dict[str, float]


class Variant(BaseModel):
    """One paragraph, and how often it is drawn where the user gives no weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    text: str = Field(min_length=1)


def read_variants(path: Path) -> dict[str, Variant]:
    """The variants of a file. Raises InputError naming the file and what is wrong in it."""
    content = read_yaml(path, InputError, missing="no such file; check the path, or leave the setting out")
    try:
        variants = TypeAdapter(dict[str, Variant]).validate_python(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path}: {key}: {first['msg'].lower()}; write `name: {{weight: 1, text: ...}}`."
        ) from problem
    if not variants:
        raise InputError(f"{path}: holds no entry; write at least one, `name: {{weight: 1, text: ...}}`.")
    return variants


def weights_for(variants: Mapping[str, Variant], asked: Weights | None, setting: str) -> Weights:
    """The weights to draw by: those asked for, or the file's own; names of weight 0 are left out.

    Raises InputError for a name that the file does not have, and where nothing is left to draw.
    """
    weights = {name: variant.weight for name, variant in variants.items()} if asked is None else asked
    for name in weights:
        if name not in variants:
            raise InputError(f"{setting}: {name!r} is not known; known: {', '.join(variants)}.")
    drawn = {name: weight for name, weight in weights.items() if weight > 0}
    if not drawn:
        raise InputError(f"{setting}: every weight is 0; give at least one a weight above 0.")
    return drawn


def draw(weights: Mapping[str, float], count: int, rng: random.Random) -> list[str]:
    """`count` names by weight, as different from each other as the weights allow, in random order.

    Systematic sampling (Madow, Annals of Mathematical Statistics 20(3), 1949): evenly spaced points over the
    cumulative weights, from a random start. A name of share p comes floor(count p) or ceil(count p) times, and
    count p times on average. The order in which the weights are written does not matter.
    """
    names = sorted(weights)
    edges = list(accumulate(weights[name] for name in names))
    start = rng.random()
    points = [(start + place) / count * edges[-1] for place in range(count)]
    drawn = [names[min(bisect_right(edges, point), len(names) - 1)] for point in points]
    rng.shuffle(drawn)
    return drawn
