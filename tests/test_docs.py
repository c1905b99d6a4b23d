"""The documentation holds: links lead somewhere, commands exist and the quick ones run, recipes are valid, the reference is fresh."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEREDOC = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF\n", re.MULTILINE | re.DOTALL)
OTHER_TOOLS = ("make", "pip", "git", "cd", ".", "export", "python", "torchrun")
DATA_STAGES = ("sources", "mine", "synthesize")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Line:
    """One line of a shell block: a file to write, a folder to make, or a command."""

    words: tuple[str, ...]
    file: str | None = None
    content: str = ""


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def shell_lines(page: Path) -> list[Line]:
    """What a reader would do with the page's shell blocks, in order."""
    lines = []
    for block in blocks(page, "sh", "bash"):
        contents = {f"HEREDOC {m.start()}": m for m in HEREDOC.finditer(block)}
        plain = HEREDOC.sub(lambda m: f"HEREDOC {m.start()}\n", block).replace("\\\n", " ")
        for text in filter(str.strip, plain.splitlines()):
            if text in contents:
                lines.append(Line((), contents[text][1], contents[text][2]))
            elif words := shlex.split(text, comments=True):
                lines.append(Line(tuple(words)))
    return lines


def medley_commands(page: Path) -> list[tuple[str, ...]]:
    return [line.words[1:] for line in shell_lines(page) if line.words[:1] == ("medley",)]


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_command(arguments: tuple[str, ...]) -> dict[str, object]:
    """Parse against the real command line without running; fails on an unknown command, option or missing argument."""
    for words, command in reference().commands():
        if arguments[: len(words)] == words:
            return command.make_context(" ".join(words), list(arguments[len(words) :])).params
    raise AssertionError(f"no such command: medley {' '.join(arguments)}")


def is_quick(arguments: tuple[str, ...]) -> bool:
    """Whether a command needs neither a model nor an endpoint."""
    verb = arguments[0]
    if verb == "run":
        until = arguments[arguments.index("--until") + 1] if "--until" in arguments else None
        return "--plan" in arguments or until in DATA_STAGES
    if verb in ("mine", "synthesize", "guard"):
        return "--retriever" not in arguments and "--llm-url" not in arguments
    if verb == "evaluate":
        return arguments[1] in ("bm25", "tiny")
    return verb in ("leaks", "compare", "status", "review")


BROUGHT = ("recipes/", "runs/handbook", "demo-run", "handbook.yaml", "recipe.yaml")
"""Files that a page takes as given: the reader's own, or made by a slow command elsewhere."""


def runnable(page: Path) -> list[Line]:
    """The lines of a page that can be carried out at once: quick commands on what the page itself makes."""
    missing = list(BROUGHT)
    chosen = []
    for line in shell_lines(page):
        command = line.words[1:] if line.words[:1] == ("medley",) else ()
        if command and (not is_quick(command) or any(m in word for word in command for m in missing)):
            if "--out" in command:
                missing.append(command[command.index("--out") + 1])
        elif command or line.file or line.words[:1] == ("mkdir",):
            chosen.append(line)
    return chosen


WITH_COMMANDS = [page for page in PAGES if medley_commands(page)]
RUNNABLE = [page for page in WITH_COMMANDS if any(line.words[:1] == ("medley",) for line in runnable(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=page_id)
def test_commands_in_the_docs_parse(page: Path) -> None:
    for line in shell_lines(page):
        if line.words and line.words[0] != "medley":
            assert line.words[0] in (*OTHER_TOOLS, "mkdir"), f"{page.name}: what is {line.words[0]!r}?"
    for arguments in medley_commands(page):
        parse_command(arguments)


@pytest.mark.parametrize("wrong", [("mien",), ("mine", "--pears", "x"), ("mine", "--pairs", "x"), ("train",)])
def test_a_wrong_command_would_be_noticed(wrong: tuple[str, ...]) -> None:
    with pytest.raises((AssertionError, Exception), match=r"(?i)no such|missing"):
        parse_command(wrong)


@pytest.mark.parametrize("page", RUNNABLE, ids=page_id)
def test_quick_commands_in_the_docs_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medley.cli import main

    monkeypatch.chdir(tmp_path)
    for line in runnable(page):
        if line.file:
            path = tmp_path / line.file
            assert path.parent.is_dir(), f"{page.name}: {line.file} is written before its folder is made"
            path.write_text(line.content, encoding="utf-8")
        elif line.words[0] == "mkdir":
            (tmp_path / line.words[-1]).mkdir(parents=True, exist_ok=True)
        else:
            monkeypatch.setattr(sys, "argv", list(line.words))
            with pytest.raises(SystemExit) as finished:
                main()
            found = line.words[1] == "leaks" and finished.value.code == 1  # a query of the example leaks
            assert found or finished.value.code in (0, None), (
                f"{' '.join(line.words)}: {capsys.readouterr().err}"
            )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_python_in_the_docs_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block compiles; those that need no model of the reader's are run."""
    monkeypatch.chdir(tmp_path)
    for text in blocks(page, "python"):
        code = compile(text, page_id(page), "exec")
        if "runs/" not in text:
            exec(code, {})


def test_enough_commands_really_run() -> None:
    run = [line.words[1] for page in RUNNABLE for line in runnable(page) if line.words[:1] == ("medley",)]
    assert set(run) >= {"run", "status", "mine", "synthesize", "evaluate", "compare", "leaks"}
    assert len(run) >= 18


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for words, _ in reference().commands():
        assert f"| `medley {words[0]}` |" in readme, f"{words[0]} is missing from the README's list"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_internal_links_resolve(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page_id(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{page_id(page)}: {target} names no heading of {file.name}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_up_to_date() -> None:
    stale = [path.name for path in reference().stale_pages()]
    assert not stale, f"{', '.join(stale)}: run python docs/make_reference.py"


def test_the_reference_check_notices_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = reference()
    monkeypatch.setattr(module, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_reference.py", "--check"])
    assert module.main() == 1
    monkeypatch.setattr(sys, "argv", ["make_reference.py"])
    assert module.main() == 0 and module.stale_pages() == []
    (tmp_path / "recipe.md").write_text("old", encoding="utf-8")
    assert [path.name for path in module.stale_pages()] == ["recipe.md"]


def recipes(page: Path) -> list[str]:
    """YAML blocks, and YAML files that shell blocks write."""
    written = [line.content for line in shell_lines(page) if line.file and line.file.endswith(".yaml")]
    return [*blocks(page, "yaml"), *written]


@pytest.mark.parametrize("page", [page for page in PAGES if recipes(page)], ids=page_id)
def test_recipes_in_the_docs_are_valid(page: Path, tmp_path: Path) -> None:
    from medley.merge.settings import read_merge_file
    from medley.recipe import parse_recipe

    for text in recipes(page):
        content = yaml.safe_load(text)
        if "sources" in content:
            parse_recipe(content, page_id(page))
        else:
            path = tmp_path / "merge.yaml"
            path.write_text(text, encoding="utf-8")
            read_merge_file(path)


def test_every_page_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target
    }
    pages = [page for page in PAGES if page.name != "README.md" and "results" not in page.parts]
    assert [page_id(page) for page in pages if page not in linked] == []


def test_recipe_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"\brecipes/[\w-]+\.yaml", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page_id(page)}: {name} does not exist"


def test_the_tests_that_results_name_are_there() -> None:
    """A table that says which test holds a promise is checked like code."""
    page = (ROOT / "docs" / "results" / "real_life.md").read_text(encoding="utf-8")
    missing, file = [], ""
    for named_file, name in re.findall(r"(test_\w+\.py)|::(test_\w+)", page):
        file = named_file or file
        path = ROOT / "tests" / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}")
    assert not missing
