"""Write docs/reference/recipe.md and commands.md from the code; `--check` only says whether they are stale.

    python docs/make_reference.py [--check]

In: the pydantic settings of recipe and merge file, and the command line. Out: two pages of Markdown, the same for
the same code on any machine.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/make_reference.py. Change the code, then run it again. -->"
NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
}


def main() -> int:
    """Write the pages, or with `--check` return 1 and name those that are stale."""
    stale = stale_pages()
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is stale; run: python docs/make_reference.py", file=sys.stderr)
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    return 0


def stale_pages() -> list[Path]:
    """The pages whose file is missing or differs from what the code says."""
    return [
        REFERENCE / name
        for name, text in pages().items()
        if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text(encoding="utf-8") != text
    ]


def pages() -> dict[str, str]:
    """Every generated page by file name."""
    return {"recipe.md": recipe_page(), "commands.md": commands_page()}


def recipe_page() -> str:
    """The keys of a recipe and of a merge file."""
    from medley.merge.settings import MergeFile
    from medley.recipe import Recipe
    from medley.template import TEMPLATES
    from medley.train.settings import LanguageSettings

    lines = [
        "# Recipe and merge file", "", NOTE, "",
        "Every key with its type, its default and what it does. `required` keys have no default. An unknown key "
        "is an error that names the nearest known one. Any key of a recipe can be changed on the command line: "
        "`--set train.epochs=2`.", "",
        "## Recipe", "",
    ]  # fmt: skip
    lines += [f"Top level. {_head(Recipe)}", "", *_tables(Recipe, "")]
    lines += ["## Templates", "", "Named values of `retriever.template`. `\\n` is a line break.", ""]
    lines += ["| name | query | query without instruction | passage |", "|---|---|---|---|"]
    for name, template in TEMPLATES.items():
        texts = (template.query, template.query_without_instruction, template.document)
        lines.append(f"| `{name}` | " + " | ".join(_literal(text) for text in texts) + " |")
    lines += [
        "",
        "## Merge file",
        "",
        f"For `medley merge` and `medley search-merge`. {_head(MergeFile)}",
        "",
    ]
    lines += _tables(MergeFile, "")
    lines += [
        "## Language-model training",
        "",
        f"For `medley train --objective language`, by `--set`. {_head(LanguageSettings)}",
        "",
        *_tables(LanguageSettings, ""),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _tables(model: type[BaseModel], prefix: str) -> list[str]:
    """A table of the model's own keys, then a section for each model that is nested in it."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        rows.append(
            f"| `{key}` | {_cell(_type(field.annotation))} | {_default(field)} | {_cell(field.description or '')} |"
        )
        for path, inner in _models_in(field.annotation, key):
            nested.append((path, inner))
    lines = [*rows, ""]
    for path, inner in nested:
        lines += [f"### `{path}`", "", _head(inner), "", *_tables(inner, f"{path}.")]
    return lines


def _models_in(annotation: Any, key: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The settings below a key; a mapping's are under `key.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield key, annotation
    elif get_origin(annotation) is dict:
        yield from _models_in(get_args(annotation)[1], f"{key}.NAME")
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models_in(argument, key)


def _type(annotation: Any) -> str:
    """A type in words."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"name -> {_type(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value in ({}, ()):
        return ""
    return _literal(value)


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    text = str(value).replace("\n", "\\n")
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands_page() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Commands", "", NOTE, "",
        "Progress goes to standard error, results to standard output. Exit code 0: success. 2: the input is wrong; "
        "one sentence says what, where and how to mend it. 1: anything else. 130: interrupted (Ctrl-C); 143: "
        "terminated (SIGTERM); both clear up what is half-written. 141: nobody reads standard output any more, as in "
        "`| head`.", "",
        "What a command may replace at `--out`, and what `--force` does: "
        "[concepts](../concepts.md#what---out-may-replace). `-h` is short for `--help`. `medley --install-completion` "
        "makes your shell complete commands and options.", "",
        "A collection is named `SPEC` or `SPEC:SPLIT`; see [concepts](../concepts.md#collections).", "",
    ]  # fmt: skip
    for words, command in commands():
        lines += [f"## `medley {' '.join(words)}`", "", _cell(command.help or ""), ""]
        lines += ["| | default | meaning |", "|---|---|---|", *_parameters(command), ""]
    return "\n".join(lines).rstrip() + "\n"


def commands() -> list[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, as `medley --help` lists them."""
    import typer

    from medley.cli import app

    return list(_leaves((), typer.main.get_command(app)))


def _leaves(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in children.items():
        yield from _leaves((*words, name), child)


def _parameters(command: Any) -> Sequence[str]:
    rows = []
    for parameter in command.params:
        option = parameter.opts[0].startswith("-")
        name = parameter.opts[0] if option else parameter.name.upper()
        if parameter.required:
            default = "required"
        elif getattr(parameter, "is_flag", False):
            default = "off"
        else:
            default = "" if parameter.default is None else _literal(parameter.default)
        repeatable = (
            " May be given several times."
            if parameter.multiple and "repeatable" not in (parameter.help or "")
            else ""
        )
        rows.append(f"| `{name}` | {default} | {_cell(parameter.help or '')}{repeatable} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
