"""`medley.merge` and `medley.search_merge`: a merge file in, one model out; weights as given, or as dev finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.api.frames import frame
from medley.claim import claimed, unfinished
from medley.errors import RecipeError
from medley.files import writing
from medley.merge.export import GateReport
from medley.merge.model import merge_model, with_shrinking, write_as_mergekit
from medley.merge.model import search_merge as search
from medley.merge.outcome import SearchResult, write_search
from medley.merge.settings import MergeFile, read_merge_file
from medley.noticed import telling

if TYPE_CHECKING:
    import pandas

    from medley.merge.coefficients import Weight


@dataclass(frozen=True)
class MergedModel:
    """Where the model is, each expert's weights, and what the gate measured (None for a plain checkpoint)."""

    path: Path
    weights: Mapping[str, Weight]
    gate: GateReport | None

    def as_json(self) -> dict[str, Any]:
        """What the command prints."""
        return {"model": str(self.path), "gate": asdict(self.gate) if self.gate else None}

    def to_frame(self) -> pandas.DataFrame:
        """A row for each expert: its name and its weight (one for each segment)."""
        return frame({"expert": name, "weight": weight} for name, weight in self.weights.items())


@dataclass(frozen=True)
class SearchedMerge:
    """What a search tried and chose, and the model with the weights that it chose."""

    path: Path
    result: SearchResult

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.path / "model"

    def to_frame(self) -> pandas.DataFrame:
        """A row for each candidate in the order tried: the experts' weights, `score` on dev, `real`, `chosen`."""
        return frame(
            {**candidate.coefficients, "score": candidate.score, "real": candidate.real,
             "chosen": candidate == self.result.best}
            for candidate in self.result.candidates
        )  # fmt: skip


@telling()
def merge(merge_file: Path | str | MergeFile, out: Path | str, *, force: bool = False) -> MergedModel:
    """Merge experts with given weights into `out`, a model that passed the gate.

    An existing `out` is replaced with `force` only, and only where Medley made it. Raises RecipeError for the file,
    ModelError for base, experts or a model that fails the gate, OutputError before anything is written.
    """
    file, out = _read(merge_file), Path(out)
    with claimed(out, force=force, folder=True, inputs=_inputs(merge_file, file)):
        gate = merge_model(file, out)
    return MergedModel(out, dict(file.weights or {}), gate)


def as_mergekit_file(merge_file: Path | str, out: Path | str, *, force: bool = False) -> Path:
    """Write the merge as a configuration that `mergekit-yaml` takes; RecipeError where mergekit has no counterpart."""
    file, out = _read(merge_file), Path(out)
    with claimed(out, force=force, inputs=_inputs(merge_file, file)):
        write_as_mergekit(file, out, force=force)
    return out


@telling()
def search_merge(
    merge_file: Path | str | MergeFile, out: Path | str, *, force: bool = False
) -> SearchedMerge:
    """Search merge weights on dev, in memory; write `search.json` and the best model to the folder `out`.

    A call that was killed goes on from its encodings. Raises what `merge` raises, and RecipeError where the file names
    no dev collection.
    """
    file, out = _read(merge_file), Path(out)
    if file.search is None or not file.search.dev:
        where = "the merge" if isinstance(merge_file, MergeFile) else merge_file
        raise RecipeError(f"{where}: search.dev is required; name at least one dev collection.")
    with (
        claimed(out, force=force, folder=True, inputs=_inputs(merge_file, file)),
        unfinished(out, "encodings") as encodings,
        writing(out) as temporary,
    ):
        file = with_shrinking(file)
        result = search(file, unfinished=encodings)
        best = file.model_copy(update={"weights": result.best.coefficients})
        merge_model(best, temporary / "model", dev=result.chosen_on)
        write_search(temporary / "search.json", result)
    return SearchedMerge(out, result)


def _read(given: Path | str | MergeFile) -> MergeFile:
    return given if isinstance(given, MergeFile) else read_merge_file(Path(given))


def _inputs(given: Path | str | MergeFile, file: MergeFile) -> list[Path | str]:
    read = [] if isinstance(given, MergeFile) else [given]
    dev = file.search.dev if file.search else ()
    return [*read, file.base, *file.experts.values(), *dev]
