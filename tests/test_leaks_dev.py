"""What a result is chosen on is never what it is tested on: in a run, in the commands that choose, in what they save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medley.collections import Passage, in_memory, load_collection, write_folder
from medley.errors import LeakError, ModelError
from medley.leaks.chosen import read_chosen
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


@pytest.mark.slow
def test_a_model_remembers_what_it_was_chosen_on(place: Path, tiny_model_folder: Path) -> None:
    """Stopped on dev, merged on dev, its instruction tuned on dev: scored on dev, every result says so."""
    pairs = [write_lines(place / f"{name}.jsonl", training_rows(f"train_{name}")) for name in "ab"]
    dev = f"{place}/coll:dev"
    for name, rows in zip("ab", pairs, strict=True):
        stop = ("--dev", dev) if name == "a" else ()
        done = medley("train", "--base", tiny_model_folder, "--pairs", rows, "--batch-size", "4", "--out",
                      place / name, "--learning-rate", "0.01", "--instruction", "Find the passage", *stop)  # fmt: skip
        assert done.code == 0, done.err
    merge = place / "merge.yaml"
    merge.write_text(
        f"base: {tiny_model_folder}\nexperts: {{a: {place}/a, b: {place}/b}}\nmethod: linear\ndtype: float32\n"
        f"search: {{strategy: random, encodings: 2, dev: ['{place}/coll:train_b']}}\n"
    )
    assert medley("search-merge", merge, "--out", place / "searched").code == 0
    model = place / "searched/model"
    assert [(r.dev, r.chose, len(r.queries)) for r in read_chosen(model)] == [
        ("coll:dev", "early stopping", 3), ("coll:train_b", "merge weights", 4),
    ]  # fmt: skip
    tuned = medley("tune-prompt", model, "--collection", f"{place}/coll:train_a", "--out", place / "p.json",
                   "--model-out", place / "tuned", "--method", "none")  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert [r.chose for r in read_chosen(place / "tuned")] == [
        "early stopping",
        "merge weights",
        "instruction",
    ]

    def scored(name: str, model: object, split: str, folder: Path = place / "coll") -> Any:
        done = medley("evaluate", model, "--task", f"{folder}:{split}", "--out", place / f"{name}.json")
        assert done.code == 0
        return done, json.loads((place / f"{name}.json").read_text())["tasks"][folder.name]

    for split, chose in (("dev", "early stopping"), ("train_b", "merge weights"), ("train_a", "instruction")):
        done, task = scored(split, place / "tuned", split)
        count = {"dev": 3}.get(split, 4)
        assert task["chosen_on"] == {"queries": count, "of": count, "dev": [f"coll:{split} ({chose})"]}
        assert f"WARNING: {place}/tuned was chosen on {count} of the {count} queries of coll" in done.err
        assert "* the model was chosen on queries of this task" in done.out
    done, task = scored(
        "copy",
        place / "tuned",
        "dev",
        copied(place, lambda t: t.replace("antibiotic against", "ANTIBIOTIC, against")),
    )
    assert task["chosen_on"]["queries"] == 3, "under another name and in capitals"
    for name, model, split in (("test", place / "tuned", "test"), ("bm25", "bm25", "dev")):
        done, task = scored(name, model, split)
        assert "chosen_on" not in task and "WARNING" not in done.err and "*" not in done.out
    compared = medley("compare", place / "dev.json", place / "bm25.json", "--json")
    (row,) = compared.json()
    assert row["chosen_on"] == {f"{place}/dev.json": {"coll": {"queries": 3, "of": 3, "dev": ["coll:dev (early stopping)"]}}}  # fmt: skip
    assert "its score there is no test" in compared.err
    (place / "tuned/medley.json").write_text('{"template": {}, "chosen_on": [3]}')
    with pytest.raises(ModelError, match=r"medley\.json: chosen_on must be"):
        read_chosen(place / "tuned")


def test_a_long_query_that_is_shared_is_cut_inside_its_quotes() -> None:
    dev = in_memory("animals", "dev", [Passage("p", "text")], {"q": "ab " * 40}, {"q": {"p": 1}})
    shared = shared_queries({"dev": dev}, {"test": dev})["dev"]
    with pytest.raises(LeakError, match=r"\('(ab ){26}ab', exact\)"):
        without_shared("dev", dev, shared, {"test": dev})
