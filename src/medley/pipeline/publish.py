"""What a run hands over beside its stages: `model/`, results, report, recipe and manifest, all of one run.

A finished run's are the content of two artefacts, the merged model and the report, so they can be checked and put
right at any time. They speak of the run that made the model: another run in the folder that stops early changes
nothing of them. The manifest is written last; its `handed_over` lists files with their content.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medley.artefact import STAGES, Mark, changed_files, keep_edited, read_artefact
from medley.errors import DemandError
from medley.files import link_tree, remove, write_json, write_text, writing
from medley.fingerprint import fingerprint_file
from medley.pipeline.cases import FAILURES
from medley.recipe import Recipe, write_recipe
from medley.report import REPORT
from medley.report.card import model_card
from medley.report.reading import read_run
from medley.run import MANIFEST, Step, manifest_of

RESULTS = "results.json"
RECIPE = "recipe.yaml"
UNFINISHED = "recipe-unfinished.yaml"
"""A recipe that was begun, and not ended, where `recipe.yaml` is that of what was handed over."""
MODEL = "model"
CARD = f"{MODEL}/README.md"
MERGED = "merge/model"
REPORTED = "report/report"
BROKEN = "broken_demands"
"""In the summary of the report's artefact: demands that the merged model does not meet, as sentences."""
HANDED_OVER = "handed_over"


def recipe_in(folder: Path) -> Path:
    """The recipe that was run last in a folder."""
    unfinished = folder / UNFINISHED
    return unfinished if unfinished.is_file() else folder / RECIPE


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write down which recipe is run: as `recipe.yaml`, unless that is the recipe of what was handed over."""
    text = write_recipe(recipe)
    path = folder / RECIPE
    same = path.is_file() and path.read_bytes() == text.encode("utf-8")
    if path.is_file() and not same and _handed_over(folder):
        write_text(folder / UNFINISHED, text)
        return
    if not same:
        write_text(path, text)
    remove(folder / UNFINISHED)


def write_manifest(recipe: Recipe, folder: Path, steps: Sequence[Step]) -> None:
    """Say in the manifest what is made so far, unless it speaks of what was handed over."""
    if not _handed_over(folder):
        write_json(folder / MANIFEST, manifest_of(folder, steps, name=recipe.name, seed=recipe.seed))


def hand_over(recipe: Recipe, folder: Path, steps: Sequence[Step]) -> None:
    """Put everything that a finished run promises at its place, where it is not there or is not what was made.

    Raises DemandError, with no model handed over, where the merged model breaks a demand of the recipe.
    """
    if not_as_made(recipe, folder, steps):
        promised = _promised(folder)
        made = folder / STAGES / REPORTED
        if CARD in promised:
            _put_model(folder, promised, (made / CARD).read_bytes())
        else:
            _make_way(folder, MODEL, promised)
            remove(folder / MODEL)
        for name in (REPORT, FAILURES, RECIPE, RESULTS):
            _make_way(folder, name, promised)
            if name not in promised:
                remove(folder / name)
                continue
            with writing(folder / name) as temporary:
                shutil.copyfile(made / name, temporary)
        write_json(folder / MANIFEST, _manifest(recipe, folder, steps, _contents(promised)))
    remove(folder / UNFINISHED)
    report = read_artefact(folder, REPORTED)
    broken = report.summary[BROKEN] if report else []
    if broken:
        raise DemandError(
            f"evaluate.demands: {'; '.join(broken)}. No model is handed over; see {folder / REPORT}. "
            "Change training data or dev sets, or the demand."
        )


def hand_over_untested(recipe: Recipe, folder: Path, steps: Sequence[Step]) -> None:
    """Hand over the merged model of a run that stops before its report, unless a finished run's stands there."""
    if (folder / RESULTS).exists():
        return
    if (folder / UNFINISHED).is_file():
        (folder / UNFINISHED).replace(folder / RECIPE)
    promised = _model_files(folder)
    write_json(folder / MANIFEST, _manifest(recipe, folder, steps, _recorded(folder)))
    _put_model(folder, promised, model_card(read_run(folder)).encode("utf-8"))
    given = {**_contents(promised), CARD: fingerprint_file(folder / CARD)}
    write_json(folder / MANIFEST, _manifest(recipe, folder, steps, given))


def not_as_made(recipe: Recipe, folder: Path, steps: Sequence[Step]) -> list[str]:
    """What of a finished run's promises is not there, or not as the run made it, in words.

    The report may have been written anew by `medley report`, so it has to be there and no more.
    """
    promised = _promised(folder)
    wrong = changed_files(folder, {name: mark for name, mark in promised.items() if name != REPORT})
    wrong += [f"{name} is not there" for name in (REPORT,) if not (folder / name).is_file()]
    if CARD not in promised and (folder / MODEL).exists():
        wrong.append(f"{MODEL} breaks a demand of the recipe")
    if not wrong and _read_manifest(folder) != _manifest(recipe, folder, steps, _contents(promised)):
        wrong.append(f"{MANIFEST} is not that of the steps made")
    return wrong


def _handed_over(folder: Path) -> bool:
    return (folder / MODEL).exists() or (folder / RESULTS).exists()


def _promised(folder: Path) -> dict[str, Mark]:
    """The files of a finished run by their names in its folder: no model where a demand is broken."""
    report = read_artefact(folder, REPORTED)
    if report is None:
        return {}
    outcome = {
        name: report.files[name] for name in (REPORT, FAILURES, RECIPE, RESULTS) if name in report.files
    }
    if report.summary[BROKEN]:
        return outcome
    return {**_model_files(folder), CARD: report.files[CARD], **outcome}


def _model_files(folder: Path) -> dict[str, Mark]:
    merged = read_artefact(folder, MERGED)
    files = merged.files if merged else {}
    return {name: mark for name, mark in files.items() if name.startswith(f"{MODEL}/")}


def _put_model(folder: Path, promised: Mapping[str, Mark], card: bytes) -> None:
    _make_way(folder, MODEL, promised)
    with writing(folder / MODEL, own=True) as temporary:
        link_tree(folder / STAGES / MERGED / MODEL, temporary)
        own = temporary / Path(CARD).name
        own.unlink(missing_ok=True)  # a second name of the artefact's, which is not to be written to
        own.write_bytes(card)


def _make_way(folder: Path, place: str, promised: Mapping[str, Mark]) -> None:
    """Keep what is at a place and is neither what was handed over last nor what is to be."""
    recorded = _recorded(folder)
    if recorded is None:
        return

    def made(name: str, path: Path) -> bool:
        whole = f"{place}/{name}" if name else place
        return recorded.get(whole) == fingerprint_file(path) or (
            whole in promised and promised[whole].fits(path)
        )

    keep_edited(folder, place, made)


def _contents(promised: Mapping[str, Mark]) -> dict[str, str]:
    return {name: mark.fingerprint for name, mark in promised.items()}


def _recorded(folder: Path) -> Mapping[str, str] | None:
    """What was handed over last; None where the manifest does not say, as none did in older formats."""
    manifest = _read_manifest(folder)
    found = manifest.get(HANDED_OVER) if isinstance(manifest, dict) else None
    return found if isinstance(found, dict) else None


def _manifest(
    recipe: Recipe, folder: Path, steps: Sequence[Step], given: Mapping[str, str] | None
) -> dict[str, Any]:
    return {
        **manifest_of(folder, steps, name=recipe.name, seed=recipe.seed),
        HANDED_OVER: given,
    }


def _read_manifest(folder: Path) -> Any:
    try:
        return json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
