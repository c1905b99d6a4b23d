"""YAML as people write it into recipes, merge files and tables, within bounds and without YAML 1.1's traps.

Read by YAML 1.2's rules: only `true` and `false` are booleans (`no` is Norwegian), `1e-3` is a number, `12:30`, `010`
and a date are texts; keys are names, hence always text. Refused with the line: a key that stands twice (YAML would take
the last), tags, nesting and aliases that unfold into more than MAX_NODES values (a "billion laughs" is 400 bytes).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from medley.errors import InputError
from medley.files import MAX_DEPTH, half_character
from medley.text_file import read_text

MAX_CHARACTERS = 2**20
"""Longest file that is read: a recipe is no place for data."""
MAX_NODES = 100_000
"""Most values that a file may unfold into, aliases counted wherever they stand."""
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_yaml(
    path: Path, error: type[InputError] = InputError, *, missing: str = "no such file; check the path"
) -> Any:
    """The content of a YAML file as plain data. Raises `error` with file:line for what is no YAML or refused."""
    return parse_yaml(read_text(path, error, missing=missing), str(path), error)


def parse_yaml(text: str, where: str, error: type[InputError] = InputError) -> Any:
    """A YAML document as plain data; `where` is its file, or the option that holds it, for the message."""
    if len(text) > MAX_CHARACTERS:
        raise error(f"{where}: longer than {MAX_CHARACTERS:,} characters; is this the right file?")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _unfolded(node, loader, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        raise error(f"{where}{line}: not valid YAML ({reason}).") from problem


def dump_yaml(value: Any, **options: Any) -> str:
    """Plain data as YAML that `parse_yaml`, and any reader of YAML 1.1 or 1.2, reads as the same."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars, text for keys, and a bound on nesting while it scans.

    (The scanner's own work grows with the square of the depth: 100 kB of brackets would take minutes.)
    """

    # none of YAML 1.1's; the few below are added
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def fetch_flow_collection_start(self, token: Any) -> None:
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return super().add_indent(column)

    def _check_depth(self, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", self.get_mark())

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,300})|0x[0-9a-fA-F]{1,300}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
"""YAML 1.2's core schema, without infinity and NaN: how each is written, and what that begins with."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts into quotes what 1.1 or 1.2 would take for anything but a text."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _unfolded(node: Any, loader: _Loader, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node unfolds into, and how deep; refuses what is beyond the bounds, and keys and tags amiss."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _refusal("an alias inside the very thing it stands for", node.start_mark)
        return found
    known[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, loader)
        children = []
    elif isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        _check_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        children = node.value
    else:
        raise _refusal(f"the tag {node.tag} is not known; take it out", node.start_mark)
    below = [_unfolded(child, loader, known) for child in children]
    size = 1 + sum(own for own, _ in below)
    depth = 1 + max((own for _, own in below), default=0)
    if size > MAX_NODES:
        raise _refusal(f"unfolds into more than {MAX_NODES:,} values", node.start_mark)
    if depth > MAX_DEPTH:
        raise _refusal(f"nested deeper than {MAX_DEPTH} levels", node.start_mark)
    known[id(node)] = size, depth
    return size, depth


def _check_scalar(node: Any, loader: _Loader) -> None:
    plain = loader.resolve(yaml.ScalarNode, node.value, (True, False))
    if node.tag not in (_TEXT, plain):
        raise _refusal(f"the tag {node.tag} does not fit {node.value[:40]!r}; take it out", node.start_mark)
    if half := _SURROGATE.search(node.value):
        raise _refusal(half_character(half[0]).rstrip("."), node.start_mark)


def _check_keys(node: Any) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refusal("a key is a name, and here stands a list or a mapping", key.start_mark)
        if key.value in seen:
            raise _refusal(f"the key {key.value[:80]!r} stands twice; keep one", key.start_mark)
        seen.add(key.value)


def _refusal(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)
