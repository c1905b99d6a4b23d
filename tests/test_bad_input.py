"""Bad input as a user meets it: exit code 2, one sentence with the place and the remedy, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from small import (
    contents,
    medley,
    medley_process,
    training_rows,
    write_collection,
    write_lines,
    write_recipe,
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy stands before the loopback."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "MEDLEY_NOWHERE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "coll")


@pytest.fixture
def recipe(tmp_path: Path, collection: Path, tiny_model_folder: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", tiny_model_folder, collection)


def refused(folder: Path, *arguments: object) -> str:
    """The one sentence that a command ends with; checks the code and that nothing in `folder` changed."""
    before = contents(folder)
    done = medley(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    lines = done.err.splitlines()
    news = [line for line in lines if re.match(r"\[\d+/\d+\] ", line)]
    assert len(lines) == len(news) + 1 and lines[-1].startswith("medley: "), done.err
    assert lines[-1].endswith((".", "?"))
    after = contents(folder)
    assert after == before, f"written: {set(after) ^ set(before)}"
    return lines[-1].removeprefix("medley: ")


def replace_line(path: Path, number: int, line: bytes) -> Path:
    """Put another line (from 1) into a file."""
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=3", r"recipe.yaml: sede: unknown key; did you mean 'seed'\?"),
        ("train.learning_rat=1", r"train.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("experts.a.sorces=[a]", r"experts.a.sorces: unknown key; did you mean 'sources'\?"),
        ("train.batch_size=many", r"train.batch_size: .*valid integer.*\(found 'many'\)"),
        ("train.epochs=0", r"train.epochs: .*greater than 0.*\(found 0\)"),
        ("merge.methods=[tise]", r"merge.methods.0: .*'task_arithmetic'.*\(found 'tise'\)"),
        ("experts.a.sources=[aa]", r"no source is called 'aa'; did you mean 'a'\?"),
        ("train", r"--set train: write key.sub=value, for example"),
        ("name.x=1", r"--set .*name is not a mapping"),
        ("train.epochs=[1", r"--set train.epochs=\[1:1: not valid YAML"),
    ],
)
def test_recipe_keys_types_and_overrides(recipe, override, message):
    assert re.search(
        message, refused(recipe.parent, "run", recipe, "--out", recipe.parent / "run", "--set", override)
    )


def test_a_search_budget_that_cannot_do_is_told_before_any_training(recipe):
    run = recipe.parent / "run"
    sentence = refused(recipe.parent, "run", recipe, "--out", run, "--set", "merge.search.encodings=4")
    assert re.search(r"search.*encodings", sentence)


def test_an_unknown_key_in_the_file_itself(recipe):
    recipe.write_text(recipe.read_text().replace("learning_rate:", "lerning_rate:"))
    sentence = refused(recipe.parent, "run", recipe, "--out", recipe.parent / "run")
    assert sentence == f"{recipe}: train.lerning_rate: unknown key; did you mean 'learning_rate'?"


def test_files_that_are_not_there(tmp_path, recipe):
    for arguments, message in (
        (["run", tmp_path / "none.yaml"], r"none.yaml: no such recipe; check the path"),
        (["run", recipe, "--set", f"sources.a={{pairs: {tmp_path}/no.jsonl}}"], r"no.jsonl: no such pairs file; check"),
        (["run", recipe, "--set", f"merge.dev=['{tmp_path}/no:dev']"], r"no: no such folder; check the path"),
        (["run", recipe, "--set", "merge.dev=[demo/medicin:dev]"], r"there are demo/general, demo/medicine"),
        (["mine", "--pairs", tmp_path / "no.jsonl", "--out", tmp_path / "o.jsonl"], r"no.jsonl: no such file"),
        (["merge", tmp_path / "no.yaml", "--out", tmp_path / "m"], r"no.yaml: no such"),
        (["compare", tmp_path / "no.json", tmp_path / "no2.json"], r"no.json: no such file; check the path"),
        (["status", tmp_path / "coll"], r"holds no recipe.yaml, so it is no run folder; check the path"),
        (["report", tmp_path / "coll"], r"coll.*: .*;"),
        (["evaluate", "bm25", "--task", f"{tmp_path}/coll:tets"], r"tets.tsv: no such split; this collection has: dev, test,"),
    ):  # fmt: skip
        assert re.search(message, refused(tmp_path, *arguments)), arguments


def test_a_variable_that_is_not_set(recipe):
    for override in ("merge.dev=['$MEDLEY_NOWHERE/x:dev']", "sources.a={pairs: $MEDLEY_NOWHERE/p.jsonl}"):
        sentence = refused(recipe.parent, "run", recipe, "--out", recipe.parent / "run", "--set", override)
        assert re.search(r"\$MEDLEY_NOWHERE/.*: the environment variable is not set; export it", sentence)


def test_a_base_that_is_no_decoder(recipe, tmp_path):
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    )
    pairs = write_lines(tmp_path / "p.jsonl", training_rows("train_a"))
    for arguments in (
        ["run", recipe, "--out", tmp_path / "run", "--set", f"base={bert}"],
        ["train", "--base", bert, "--pairs", pairs, "--out", tmp_path / "expert"],
    ):
        sentence = refused(tmp_path, *arguments)
        assert f"{bert}: is a bert model, which is no decoder-only language model; choose a base" in sentence
    offline = {"HF_HUB_OFFLINE": "1"}  # read when transformers is imported, hence a process of its own
    done = medley_process("run", recipe, "--set", "base=no/such-model", cwd=tmp_path, env=offline)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert done.err.startswith("medley: no/such-model: ") and done.err.endswith("or check the name.\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: " in refused(tmp_path, "run", recipe, "--set", f"base={empty}")


BAD_PAIRS = [
    (b'{"query": "q", "positive": ', r"p.jsonl:2: not valid JSON \(.*column \d+\); each line must be one"),
    (b"[1, 2]", r"p.jsonl:2: expected a JSON object, found a list"),
    (b'{"query": "q"}', r"p.jsonl:2: no key 'positive' \(found: query\); write query, positive"),
    (b'{"query": " ", "positive": "p"}', r"p.jsonl:2: query is empty .*; give it a text or remove the line"),
    (b'{"query": "q", "positive": ""}', r"p.jsonl:2: positive is empty"),
    (b'{"query": "q", "positive": 3}', r"p.jsonl:2: positive is empty or not a string"),
    (b'{"query": "q", "positive": "p", "negatives": ["n", "p"]}', r"p.jsonl:2: negative 1 equals the positive; remove it"),
    (b'{"query": "q", "positive": "p", "negatives": [""]}', r"p.jsonl:2: negative 0 is empty"),
    (b'{"query": "q", "positive": "p", "negatives": "n"}', r"p.jsonl:2: negatives must be a list of strings"),
    (b'{"query": "caf\xe9", "positive": "p"}', r"p.jsonl:2: byte 14 of the line is not UTF-8; save the file as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_PAIRS, ids=[message[:40] for _, message in BAD_PAIRS])
def test_a_broken_pairs_file(tmp_path, recipe, line, message):
    pairs = replace_line(write_lines(tmp_path / "p.jsonl", training_rows("train_a")), 2, line)
    assert re.search(message, refused(tmp_path, "mine", "--pairs", pairs, "--out", tmp_path / "mined.jsonl"))
    sentence = refused(
        tmp_path, "run", recipe, "--out", tmp_path / "run", "--set", f"sources.b={{pairs: {pairs}}}"
    )
    assert re.search(message, sentence)


BAD_LINES = [
    ("corpus.jsonl", 3, b'{"_id": "p3", ', r"corpus.jsonl:3: not valid JSON .*; each line must be one complete"),
    ("corpus.jsonl", 3, b'{"_id": "p1", "text": "x"}', r"corpus.jsonl:3: duplicate passage id 'p1'; ids must be unique"),
    ("corpus.jsonl", 3, b'{"_id": "p3", "title": "", "text": " "}', r"corpus.jsonl:3: the passage is empty; give it a text"),
    ("corpus.jsonl", 3, b'{"_id": "p3", "text": "\xff"}', r"corpus.jsonl:3: byte 23 of the line is not UTF-8; save"),
    ("corpus.jsonl", 3, b'{"text": "x"}', r"corpus.jsonl:3: no usable _id; give every line a string"),
    ("corpus.jsonl", 3, b'{"_id": "p3", "text": 7}', r"corpus.jsonl:3: text is a number; it must be a string"),
    ("queries.jsonl", 2, b'{"_id": "a1", "text": "again"}', r"queries.jsonl:2: duplicate query id 'a1'"),
    ("queries.jsonl", 12, b'{"_id": "t1", "text": ""}', r"queries.jsonl:12: query 't1' is empty; give it a text"),
    ("queries.jsonl", 2, b"nonsense", r"queries.jsonl:2: not valid JSON"),
    ("qrels/test.tsv", 2, b"t1\tp2\tyes", r"test.tsv:2: score 'yes' is not a whole number; use 0, 1, 2"),
    ("qrels/test.tsv", 2, b"t1 p2", r"test.tsv:2: 2 columns where the first line has 3; separate them by tabs"),
    ("qrels/test.tsv", 2, b"t1\tp1\t2", r"test.tsv:3: 't1' judges 'p1' a second time, and differently; keep one line"),
    ("qrels/test.tsv", 2, b"t1\tp\xe9\t2", r"test.tsv:2: byte 4 of the line is not UTF-8; save the file as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "number", "line", "message"), BAD_LINES, ids=[row[3][:45] for row in BAD_LINES]
)
def test_a_broken_collection(tmp_path, recipe, collection, file, number, line, message):
    replace_line(collection / file, number, line)
    sentence = refused(
        tmp_path, "evaluate", "bm25", "--task", f"{collection}:test", "--out", tmp_path / "r.json"
    )
    assert re.search(message, sentence)
    assert re.search(message, refused(tmp_path, "run", recipe, "--out", tmp_path / "run"))


def test_training_queries_that_stand_in_the_test(tmp_path, recipe, collection):
    rows = training_rows("train_a")
    rows.append({"query": "Does vaccination prevent MUMPS?", "positive": "Yes, in most people it does."})
    pairs = write_lines(tmp_path / "p.jsonl", rows)
    run = ["run", recipe, "--until", "leaks", "--set", f"sources.a={{pairs: {pairs}}}", "--out"]
    sentence = refused(tmp_path, *run, tmp_path / "run")
    assert re.search(
        r"sources.a: 1 of 5 training queries also stand in .*coll:test, the first being row 4 "
        r"\('Does vaccination prevent MUMPS\?'\); use other training data, or set `leaks: drop`",
        sentence,
    )
    for leaks, kept in (("drop", 4), ("allow", 5)):
        assert medley(*run, tmp_path / leaks, "--set", f"leaks={leaks}").code == 0
        kept_rows = (tmp_path / leaks / "stages/sources/a/pairs.jsonl").read_text().splitlines()
        assert len(kept_rows) == kept


def test_an_endpoint_that_is_down(tmp_path, recipe):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    pairs = write_lines(tmp_path / "p.jsonl", training_rows("train_a"))
    llm = ["--llm-url", url, "--llm-model", "m"]
    sentence = refused(
        tmp_path, "synthesize", "negatives", "--pairs", pairs, "--out", tmp_path / "g.jsonl", *llm
    )
    assert sentence.startswith(f"{url}: no language model")
    done = medley("run", recipe, "--out", tmp_path / "run", "--set", f"llm={{base_url: '{url}', model: m}}")
    assert done.code == 2 and f"\nmedley: {url}: no language model" in done.err
    assert "Traceback" not in done.err
    made = sorted(path.name for path in (tmp_path / "run/stages").glob("*/*"))
    assert made == [*"aabb", "sources"], "what was finished before stays, and nothing half-written"
    assert not (tmp_path / "run/stages/synthesize/a").exists()
    nameless = ["synthesize", "negatives", "--pairs", pairs, "--out", tmp_path / "g", "--llm-url", url]
    sentence = refused(tmp_path, *nameless)
    assert sentence.startswith("--llm-model is required with --llm-url")


def test_a_folder_that_holds_something_else(tmp_path, recipe):
    assert medley("run", recipe, "--out", tmp_path / "run", "--until", "sources").code == 0
    sentence = refused(tmp_path, "run", recipe, "--out", tmp_path / "run", "--set", "name=other")
    assert sentence.endswith(
        f"{tmp_path / 'run'}: holds another run ('small', not 'other'); choose another --out."
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    sentence = refused(tmp_path, "run", recipe, "--out", tmp_path / "thesis")
    assert sentence.endswith("thesis: is not empty and holds no Medley run; choose another --out.")
    sentence = refused(tmp_path, "run", recipe, "--out", recipe)
    assert sentence.endswith("recipe.yaml: is a file; choose another --out.")
    sentence = refused(tmp_path, "run", recipe, "--out", recipe / "below")
    assert sentence.endswith("a file stands where a folder is needed; choose another --out.")


def test_an_unknown_stage(recipe):
    sentence = refused(recipe.parent, "run", recipe, "--out", recipe.parent / "run", "--until", "trian")
    assert sentence.startswith("--until trian: no such stage; choose one of sources, leaks, mine,")


def test_settings_out_of_range_on_the_command_line(tmp_path, tiny_model_folder):
    pairs = write_lines(tmp_path / "p.jsonl", training_rows("train_a"))
    mine = ["mine", "--pairs", pairs, "--out", tmp_path / "o.jsonl"]
    assert re.search(r"depth: .*\(found 0\)", refused(tmp_path, *mine, "--depth", "0"))
    train = ["train", "--base", tiny_model_folder, "--pairs", pairs, "--out", tmp_path / "e"]
    assert re.search(r"batch_size: .*\(found 1\)", refused(tmp_path, *train, "--batch-size", "1"))
    assert "epoch: unknown key; did you mean 'epochs'?" in refused(tmp_path, *train, "--set", "epoch=3")
    sentence = refused(tmp_path, *train, "--set", "train.epochs=3")
    assert "train: unknown key" in sentence and "mean 'train'" not in sentence and "sources" not in sentence
    assert "for example --set weight_decay=0.01" in refused(tmp_path, *train, "--set", "epochs")


def test_merge_files(tmp_path, tiny_model_folder):
    file = tmp_path / "merge.yaml"
    for content, message in (
        ("experts: {a: x}", r"merge.yaml: base: .*required"),
        ("base: x\nexperts: {a: x}\nwieghts: {a: 1}", r"wieghts: unknown key; did you mean 'weights'"),
        ("base: x\nexperts: {a: x}\nmethod: tise", r"no 'tise'.*'ties'"),
        ("base: x\nexperts: {a: x}\nweights: {b: 1}", r"weights: .*'?b'?"),
        ("base: [x", r"merge.yaml:1: not valid YAML \(expected"),
        (f"base: {tiny_model_folder}\nexperts: {{a: {tmp_path}/none}}\nweights: {{a: 1}}", r"none: "),
    ):
        file.write_text(content)
        sentence = refused(tmp_path, "merge", file, "--out", tmp_path / "merged")
        assert re.search(message, sentence), sentence
    file.write_text(f"base: {tiny_model_folder}\nexperts: {{a: {tmp_path}}}")
    sentence = refused(tmp_path, "search-merge", file, "--out", tmp_path / "search")
    assert re.search(r"merge.yaml: search.dev is required; name at least one dev collection", sentence)


def test_results_that_cannot_be_compared(tmp_path):
    (tmp_path / "a.json").write_text('{"tasks": {}}')
    (tmp_path / "b.json").write_text('{"scores": 1}')
    assert "at least two" in refused(tmp_path, "compare", tmp_path / "a.json")
    sentence = refused(tmp_path, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "b.json: has neither `tasks` nor `variants`" in sentence
    for name in "ab":
        results = {
            "model": {"name": name},
            "tasks": {f"only-{name}": {"per_query": {"q": {"ndcg_at_10": 1.0}}}},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    sentence = refused(tmp_path, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "no task in common (only-a against only-b)" in sentence


@pytest.mark.slow
def test_as_a_process_there_is_one_line_and_no_traceback(tmp_path, collection, recipe):
    replace_line(collection / "qrels" / "test.tsv", 2, b"t1\tp2\t0.5")
    before = contents(tmp_path)
    for arguments in (
        ["run", recipe, "--out", tmp_path / "run"],
        ["evaluate", "bm25", "--task", f"{collection}:test"],
        ["run", recipe, "--out", tmp_path / "run", "--set", "train.lora.rnak=3"],
    ):
        done = medley_process(*arguments, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("medley: ") and done.err.count("\n") == 1, done.err
    assert contents(tmp_path) == before


def on_a_small_disk(size: str, disk: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run medley where `disk` is a file system of `size`; prints the hidden files left over there."""
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` here to mount a small disk with")
    disk.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" || exit 77; disk=$2; shift 2; "$@"; code=$?; ' \
        'find "$disk" -mindepth 1 -name ".*" ! -name .medley-files; exit $code'  # fmt: skip
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", size, disk, sys.executable, "-m", "medley", *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("mounting a small disk is not permitted here")
    return done


@pytest.mark.parametrize("command", ["train", pytest.param("run", marks=pytest.mark.slow), "synthesize"])
def test_a_full_disk_while_saving(tmp_path, recipe, tiny_model_folder, command):
    disk = tmp_path / "disk"
    pairs = write_lines(tmp_path / "p.jsonl", training_rows("train_a") * 50)
    size, arguments = {
        "train": ("16k", ["train", "--base", tiny_model_folder, "--pairs", pairs, "--out", disk / "expert"]),
        "run": ("220k", ["run", recipe, "--until", "merge", "--out", disk / "run"]),
        "synthesize": ("24k", ["synthesize", "negatives", "--pairs", pairs, "--out", disk / "g.jsonl"]),
    }[command]
    done = on_a_small_disk(size, disk, *arguments)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert re.match(
        rf"medley: {disk}/.*: the disk is full; free some space and run the same command again", last
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "nothing half-written stays"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"a.json: has neither `tasks` nor `variants`"),
        ('{"tasks": []}', r"a.json: variants\.\.tasks: input should be a valid dictionary"),
        ('{"variants": {"merged": 7}}', r"a.json: variants.merged: "),
        ('{"tasks": {"t": {"per_query": {"q": {"ndcg_at_10": NaN}}}}}', r"ndcg_at_10: input should be a finite number"),
        ('{"tasks": {"t": {"per_query": {"q": {"ndcg_at_10": "0.5"}}}}}', r"ndcg_at_10: input should be a valid number"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_results_is_told_so(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.json").write_text('{"tasks": {"t": {"per_query": {"q": {"ndcg_at_10": 0.5}}}}}')
    done = medley("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert done.code == 2 and re.search(message, done.err), done.err
