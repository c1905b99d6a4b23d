"""What a result is chosen on is never what it is tested on: in a run, in the commands that choose, in what they save."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medley.collections import Passage, in_memory, load_collection, write_folder
from medley.errors import LeakError
from medley.leaks.dev import open_dev, shared_queries, without_shared
from small import QUERIES, medley, training_rows, write_collection, write_lines, write_recipe


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_collection(tmp_path / "coll")
    return tmp_path


def copied(place: Path, change: Callable[[str], str] = str, name: str = "other") -> Path:
    """The collection in a folder of another name, its queries.jsonl changed."""
    folder = place / name
    shutil.copytree(place / "coll", folder)
    queries = folder / "queries.jsonl"
    queries.write_text(change(queries.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def renamed_split(place: Path) -> str:
    shutil.copyfile(place / "coll/qrels/test.tsv", place / "coll/qrels/validation.tsv")
    return f"{place}/coll:validation"


def renamed_queries(place: Path) -> str:
    """The test under another name, other ids, and its queries a word longer."""
    folder = copied(place, lambda text: text.replace('"_id": "t', '"_id": "u').replace("does vaccination prevent", "does vaccination also prevent"))  # fmt: skip
    table = folder / "qrels/test.tsv"
    table.write_text(table.read_text().replace("\nt", "\nu"))
    return f"{folder}:test"


def reworded(place: Path) -> str:
    """The test with every question asked in other words, under the same ids."""
    words = {text: f"Question number {key} in words of its own" for key, (_, text, _, _) in QUERIES.items()}

    def change(text: str) -> str:
        for old, new in words.items():
            text = text.replace(old, new)
        return text

    return f"{copied(place, change)}:test"


DISGUISES: dict[str, Callable[[Path], str]] = {
    "the test itself": lambda place: f"{place}/coll:test",
    "a part of the test": lambda place: f"{place}/coll:test[50%:]",
    "a copied folder": lambda place: f"{copied(place)}:test",
    "a renamed split": renamed_split,
    "other ids, a word more": renamed_queries,
    "the same judgements": reworded,
}


@pytest.mark.parametrize("policy", ["refuse", "drop", "allow"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_run_refuses_a_test_set_as_dev(
    place: Path, tiny_model_folder: Path, disguise: str, policy: str
) -> None:
    dev = DISGUISES[disguise](place)
    for number, change in enumerate(
        ({"merge.dev": [dev]}, {"experts": {"a": {"sources": ["a"], "dev": [dev]}, "b": {"sources": ["b"]}}})
    ):
        recipe = write_recipe(
            place / f"{number}.yaml", tiny_model_folder, place / "coll", leaks=policy, **change
        )
        for arguments in (("--plan",), ()):
            done = medley("run", recipe, "--out", place / "run", *arguments)
            assert done.code == 2 and f"{dev}: " in done.err and "are also test queries" in done.err, done.err
            assert "Traceback" not in done.err and not (place / "run").exists()


def test_slices_that_overlap_are_refused_and_others_are_not(place: Path, tiny_model_folder: Path) -> None:
    for start, code in (("50%", 0), ("25%", 2)):
        recipe = write_recipe(
            place / "r.yaml", tiny_model_folder, place / "coll",
            **{"merge.dev": [f"{place}/coll:test[{start}:]"], "evaluate.medical": [f"{place}/coll:test[:50%]"]},
        )  # fmt: skip
        assert medley("run", recipe, "--out", place / "run", "--plan").code == code


@pytest.mark.parametrize("disguise", ["the test itself", "a part of the test", "a renamed split"])
def test_commands_refuse_to_choose_on_the_test_split(
    place: Path, tiny_model_folder: Path, disguise: str
) -> None:
    dev = DISGUISES[disguise](place)
    pairs = write_lines(place / "a.jsonl", training_rows("train_a"))
    base = ("--base", tiny_model_folder, "--pairs", pairs, "--batch-size", "4")
    expert = place / "expert"
    assert medley("train", *base, "--out", expert).code == 0
    merge = place / "merge.yaml"
    merge.write_text(
        f"base: {tiny_model_folder}\nexperts: {{a: {expert}, b: {expert}}}\nmethod: linear\n"
        f"search: {{strategy: random, encodings: 2, dev: ['{dev}']}}\n"
    )
    for command in (
        ("train", *base, "--out", place / "stopped", "--dev", dev),
        ("search-merge", merge, "--out", place / "searched"),
        ("tune-prompt", tiny_model_folder, "--collection", dev, "--out", place / "prompt.json"),
    ):
        done = medley(*command)
        assert done.code == 2 and dev in done.err and "Traceback" not in done.err, done.err
    assert not any((place / name).exists() for name in ("stopped", "searched/search.json", "prompt.json"))


def split_of(place: Path, split: str, first: int, count: int) -> Any:
    """A split of one folder with `count` queries from number `first` on."""
    passages = [Passage(f"p{number}", f"Passage {number} is about the animal of number {number}.") for number in range(200)]  # fmt: skip
    queries = {f"q{n}": f"animal {n}" for n in range(first, first + count)}
    collection = in_memory("animals", split, passages, queries, {q: {f"p{q[1:]}": 1} for q in queries})
    write_folder(collection, place / "animals")
    return collection


def test_a_few_shared_queries_are_left_out_and_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_of(place, "test", 0, 100)
    split_of(place, "dev", 98, 60)
    dev = open_dev(f"{place}/animals:dev")
    assert len(dev.queries) == len(dev.judgements) == 58 and not {"q98", "q99"} & set(dev.queries)
    said = capsys.readouterr().err
    assert f"{place}/animals:dev: 2 of its 60 dev queries" in said and "left out" in said and "'q98'" in said
    assert dev.identity != load_collection(f"{place}/animals:dev").identity
    split_of(place, "dev", 94, 60)
    with pytest.raises(LeakError, match="6 of its 60 dev queries"):
        open_dev(f"{place}/animals:dev")


def test_a_large_dev_set_that_holds_a_small_test_set_is_refused(place: Path) -> None:
    dev, test = split_of(place, "dev", 0, 150), split_of(place, "test", 0, 5)
    shared = shared_queries({"dev": dev}, {"test": test})["dev"]
    assert len(shared) == 5
    with pytest.raises(LeakError, match="5 of its 150 dev queries"):
        without_shared("dev", dev, shared, {"test": test})


def test_one_answer_to_two_questions_is_no_leak(place: Path) -> None:
    passages = [Passage("p1", "Insulin lowers blood glucose."), Passage("p2", "Copper conducts.")]
    dev = in_memory("one", "dev", passages, {"1": "what lowers sugar"}, {"1": {"p1": 1}})
    other = in_memory("two", "test", passages, {"2": "which hormone is injected"}, {"2": {"p1": 1}})
    assert shared_queries({"dev": dev}, {"test": other}) == {"dev": []}
    numbered = in_memory("three", "test", [Passage("p1", "Of something else.")], {"1": "who won"}, {"1": {"p1": 1}})  # fmt: skip
    assert shared_queries({"dev": dev}, {"test": numbered}) == {"dev": []}, "ids alone say nothing"


def test_under_drop_a_run_leaves_shared_dev_queries_out(place: Path, tiny_model_folder: Path) -> None:
    split_of(place, "test", 0, 100)
    split_of(place, "dev", 98, 60)
    change = {"merge.dev": [f"{place}/animals:dev"], "evaluate.medical": [f"{place}/animals:test"]}
    recipe = write_recipe(place / "r.yaml", tiny_model_folder, place / "coll", **change)
    refused = medley("run", recipe, "--out", place / "run", "--until", "leaks")
    assert refused.code == 2 and "`leaks: drop`" in refused.err
    done = medley("run", recipe, "--out", place / "run", "--until", "leaks", "--set", "leaks=drop")
    assert done.code == 0 and "2 of its 60 dev queries" in done.err
    artefact = (place / "run/stages/leaks/sources/artefact.json").read_text()
    assert '"dev_queries_left_out"' in artefact and "animals:dev" in artefact
