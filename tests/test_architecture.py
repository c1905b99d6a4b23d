"""The shape of the source: who may import whom, that imports are cheap, that files stay small and say what they are."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import medley
from medley.collections import BUNDLED
from medley.pipeline import STAGES, plan_steps
from medley.recipe import load_recipe

PACKAGE = Path(medley.__file__).parent
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "bundled" not in path.parts)

LAYERS = (
    {"errors"},
    {"files", "recipe_problems", "text_file", "yaml_file", "csv_file", "fingerprint", "progress", "markdown", "overlap", "words", "sentences", "template", "collections", "documents",
     "qrels", "mteb_tasks", "pair_files", "pairs", "leaks", "origins", "positives", "prompt_file", "hub", "loading", "model_name", "traits", "statistics", "finite",
     "noticed",
     "ending", "durable", "replaceable"},
    {"artefact", "run", "reuse", "claim"},
    {"llm", "batches", "encoder", "search", "backbone", "lowrank", "adapter_file", "expert", "any_model", "prefix"},
    {"mine", "synthesize", "guard", "review", "prompts", "train", "merge", "evaluate", "report"},
    {"recipe", "recipe_data", "recipe_merge", "recipe_places"},  # every stage's settings in one file; the stages themselves it does not call
    {"pipeline"},
    {"api"},
    {"cli", "cli_compare", "cli_evaluate", "cli_guard", "cli_leaks", "cli_llm", "cli_options", "cli_prompts", "cli_synthesize",
     "cli_train", "__main__", "tables"},
)  # fmt: skip
"""From below to above: a module imports only from its own layer (stages: only from themselves) and those below."""
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
STAGE_LEVEL = 4
SETTLED_LATER = {}
"""Imports that break the rule, each with what would mend it. A test fails when one of them is gone."""
LONGER = {"cli.py": 430}
"""Files past 400 lines, and how long they may be: a list that must not grow."""
HEAVY = (
    "torch", "transformers", "sentence_transformers", "mteb", "mergekit", "peft", "datasets", "scipy", "openai",
    "bm25s", "optuna", "gepa", "jinja2", "huggingface_hub", "tokenizers", "pyarrow",
)  # fmt: skip


def name_of(path: Path) -> str:
    """`merge/pool.py` -> `merge`; the package's own __init__ -> ``."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """First-level names inside medley that a piece of code imports, at its top or within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medley":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("medley.")}
    return found


def violations() -> set[tuple[str, str]]:
    """(place, imported name) of every import that goes upwards or from one stage into another."""
    found = set()
    for path in MODULES:
        name = name_of(path)
        if not name:
            continue
        level = LAYER_OF[name]
        for other in imported(ast.parse(path.read_text(encoding="utf-8"))) - {name}:
            upwards = LAYER_OF[other] > level
            sideways = LAYER_OF[other] == level == STAGE_LEVEL
            if upwards or sideways:
                found.add((path.relative_to(PACKAGE).as_posix(), other))
    commands = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    for node in commands.body:
        if isinstance(node, ast.FunctionDef):
            stages = imported(node) & LAYERS[STAGE_LEVEL]
            if len(stages) > 1:  # a command is a shell round one stage; what joins two is the pipeline's
                found |= {(f"cli.py:{node.name}", stage) for stage in stages - {own_stage(node.name)}}
    return found


def own_stage(command: str) -> str:
    """The stage that a command is named after."""
    return {"tune_prompt": "prompts", "search_merge": "merge"}.get(command, command.split("_")[0])


def test_every_module_has_a_layer():
    assert {name_of(path) for path in MODULES} - {""} == set(LAYER_OF)


def test_imports_go_downwards_and_stages_do_not_know_each_other():
    assert violations() <= set(SETTLED_LATER)


def test_the_list_of_known_violations_is_not_longer_than_needed():
    assert set(SETTLED_LATER) <= violations(), "settled: take it off the list"


def test_stages_are_stated_once_and_planned_in_that_order(tmp_path):
    steps = plan_steps(load_recipe(BUNDLED / "demo" / "recipe.yaml", ["pretrain={collections: [demo/general:dev]}"]),
                       tmp_path)  # fmt: skip
    assert tuple(dict.fromkeys(step.stage for step in steps)) == STAGES
    before: set[str] = set()
    for step in steps:
        assert set(step.needs) <= before, f"{step.id} needs what comes after it"
        before.add(step.id)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
                values = node.keys if isinstance(node, ast.Dict) else node.elts
                stages = [v.value for v in values if isinstance(v, ast.Constant) and v.value in STAGES]
                assert len(stages) < 5 or path.name == "plan.py", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_says_what_it_is_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), "opens with what it is"
    limit = LONGER.get(path.relative_to(PACKAGE).as_posix(), 400)
    assert len(text.splitlines()) <= limit, "wants to be two files"
    assert path.stem not in {"utils", "util", "helpers", "common", "manager", "base", "misc"}


def test_importing_medley_defines_and_does_nothing_more():
    names = [
        ".".join(("medley", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if path.name != "__main__.py"
    ]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert done.stderr == ""


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_take_what_is_there(script: Path) -> None:
    """A benchmark runs for hours on somebody's machine; a name that has moved shows here first."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medley"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
