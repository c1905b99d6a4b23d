"""The command line: what DESIGN promises of each command, from help to the last number."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import medley as package
from medley.tables import print_evaluation, print_results, print_steps
from small import (
    Outcome,
    contents,
    medley,
    medley_process,
    training_rows,
    write_collection,
    write_lines,
    write_recipe,
)

COMMANDS = {
    "demo": ["--out"],
    "run": ["RECIPE", "--out", "--until", "--set", "--plan"],
    "status": ["FOLDER"],
    "mine": ["--pairs", "--out", "--retriever", "--corpus"],
    "synthesize negatives": ["--pairs", "--out", "--llm-url", "--llm-model", "--concurrency", "--budget-tokens", "--kinds"],
    "synthesize queries": ["--corpus", "--out", "--llm-url", "--llm-model", "--per-passage", "--consistency", "--top-k"],
    "synthesize tasks": ["--out", "--tasks", "--per-task", "--llm-url", "--llm-model"],
    "guard": ["--pairs", "--out", "--retriever", "--margin", "--judge"],
    "review": ["--pairs", "--out", "--csv", "--rows", "--seed", "--read"],
    "tune-prompt": ["MODEL", "--collection", "--method", "--out"],
    "train": ["--base", "--pairs", "--out"],
    "merge": ["MERGE_FILE", "--out"],
    "search-merge": ["MERGE_FILE", "--out"],
    "evaluate": ["MODEL", "--task", "--out", "--json"],
    "compare": ["RESULTS", "--json"],
    "leaks": ["--pairs", "--against", "--json"],
    "report": ["FOLDER"],
    "published": ["--run", "--base", "--json"],
}  # fmt: skip
"""Every command with the arguments and options that others rely on (DESIGN, Command line)."""
LEAK_KEYS = ["row", "field", "against", "id", "kind", "split", "similarity"]


def commands() -> set[str]:
    """All commands that the program has, subcommands included."""
    import typer.main

    from medley.cli import app

    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {sub}" for sub in inner} if inner else {name}
    return found


def test_the_commands_are_those_that_were_promised():
    assert commands() == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = medley(*command.split(), "--help")
    assert done.code == 0 and done.err == ""
    assert re.match(rf"Usage: .*\b{command} ", done.out)
    for word in COMMANDS[command]:
        assert word.lower() in done.out.lower()
    description = done.out.split("\n\n")[1].strip()
    assert description.endswith(".") and len(description) > 20
    for line in done.out.splitlines():  # every option says what it is for; a long one on the next line
        if re.match(r"  -", line):
            assert re.search(r"\s{2,}\S", line[3:]) or len(line) > 26, f"{line!r} has no help"


@pytest.mark.parametrize("group", [[], ["synthesize"]])
def test_no_line_of_an_overview_is_cut(group):
    listed = succeeded(*group, "--help").out.partition("Commands:")[2]
    assert listed.count(".") >= 3 and "..." not in listed


def test_the_overview_names_every_command():
    overview = medley("--help")
    assert overview.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\s+{command.split()[0]}\s+[A-Z]", overview.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (["mine", "--pears", "x"], "no such option: --pears (Possible options: --base, --pairs, --vectors); see `medley mine --help`."),
        (["mime"], "no such command 'mime'. Did you mean 'mine'? See `medley --help`."),
        (["mine", "--depth", "deep"], "invalid value for '--depth': "),
        (["evaluate"], "missing argument 'model'; see `medley evaluate --help`."),
    ],
    ids=["option", "command", "value", "argument"],
)  # fmt: skip
def test_a_wrong_call_is_told_in_one_sentence(call, sentence):
    done = medley(*call)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith(f"medley: {sentence}") and done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "synthesize", *COMMANDS])
def test_help_has_a_short_name(command):
    assert medley(*command.split(), "-h") == medley(*command.split(), "--help")


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "medley sea"), ("zsh", "medley sea"), ("fish", "medley sea")]
)
def test_a_shell_completes_commands(shell, line):
    env = {
        "_MEDLEY_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line, "COMP_CWORD": "1",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_WORD_TO_COMPLETE": "sea",
    }  # fmt: skip
    done = medley_process(env=env)
    assert done.code == 0 and done.err == "" and "search-merge" in done.out


def test_the_version_is_that_of_the_distribution():
    done = medley("--version")
    assert done.code == 0 and done.out == f"medley {package.__version__}\n"


def cpu_seconds(*arguments: str) -> float:
    """The least CPU time of five runs of a Python process: other work on the machine does not count."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_help_and_import_are_quick():
    assert cpu_seconds("-m", "medley", "--help") < 0.5
    assert cpu_seconds("-c", "import medley") < 0.2


def test_help_loads_no_heavy_library():
    code = (
        "import sys; sys.argv = ['medley', '--help']\n"
        "from medley.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "torch transformers mteb sentence_transformers numpy pydantic yaml scipy openai"
    assert not set(heavy.split()) & set(done.stderr.split())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection and pairs files."""
    folder = tmp_path_factory.mktemp("work")
    write_collection(folder / "coll")
    for name in ("train_a", "train_b"):
        write_lines(folder / f"{name}.jsonl", training_rows(name))
    return folder


def succeeded(*arguments: object) -> Outcome:
    done = medley(*arguments)
    assert done.code == 0, done.err
    return done


def pair_rows(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        assert set(row) == {"query", "positive", "negatives", "instruction", "source", "provenance"}
    return rows


def test_mine(work, tmp_path):
    given = tmp_path / "given.jsonl"
    write_lines(given, [{**row, "negatives": []} for row in training_rows("train_a")])
    done = succeeded(
        "mine", "--pairs", given, "--corpus", work / "coll", "--out", tmp_path / "mined.jsonl",
        "--margin", "1", "--depth", "5",
    )  # fmt: skip
    rows = pair_rows(tmp_path / "mined.jsonl")
    assert [row["query"] for row in rows] == [row["query"] for row in training_rows("train_a")]
    assert sum(len(row["negatives"]) for row in rows) > 0
    assert done.json()["pairs"] == 4


def test_mine_with_a_model(work, tmp_path, tiny_model_folder):
    succeeded(
        "mine", "--pairs", work / "train_a.jsonl", "--corpus", work / "coll",
        "--out", tmp_path / "mined.parquet", "--retriever", tiny_model_folder, "--depth", "4",
    )  # fmt: skip
    assert succeeded("mine", "--pairs", tmp_path / "mined.parquet", "--out", tmp_path / "more.jsonl.gz")


def test_synthesize_negatives_by_perturbation(work, tmp_path):
    out = tmp_path / "generated.jsonl"
    done = succeeded("synthesize", "negatives", "--pairs", work / "train_a.jsonl", "--corpus", work / "coll", "--out", out)  # fmt: skip
    rows = pair_rows(out)
    added = [
        set(row["negatives"]) - set(given["negatives"])
        for row, given in zip(rows, training_rows("train_a"), strict=True)
    ]
    assert done.json()["made"] == sum(map(len, added)) > 0
    again = tmp_path / "again.jsonl"
    succeeded("synthesize", "negatives", "--pairs", work / "train_a.jsonl", "--corpus", work / "coll", "--out", again)  # fmt: skip
    assert again.read_bytes() == out.read_bytes(), "the same seed gives the same text"
    bare = succeeded(
        "synthesize", "negatives", "--pairs", work / "train_a.jsonl", "--out", tmp_path / "bare.jsonl"
    )
    assert "no corpus is given" in bare.err and "no corpus is given" not in done.err


def test_leaks(work, tmp_path):
    rows = [
        {"query": "antibiotic against Lyme disease!", "positive": "Something of its own entirely.", "negatives": []},
        {"query": "a question that nobody asked before", "positive": "Another passage of its own kind.",
         "negatives": ["Mumps is a viral infection that causes swollen salivary glands. Vaccination prevents it in most."]},
    ]  # fmt: skip
    pairs = write_lines(tmp_path / "p.jsonl", rows)
    done = medley("leaks", "--pairs", pairs, "--against", f"{work}/coll:dev", "--json")
    assert (done.code, done.err) == (1, ""), "a query that leaks is told by the exit code"
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [list(leak) for leak in found] == [LEAK_KEYS, LEAK_KEYS]
    assert list(found[0].values()) == [0, "query", "coll", "d1", "exact", "dev", 1.0]
    assert list(found[1].values())[:-1] == [1, "negative", "coll", "p6", "near", "dev"]
    assert 0.8 <= found[1]["similarity"] < 1
    text = medley("leaks", "--pairs", pairs, "--against", f"{work}/coll:dev").out.splitlines()
    assert len(text) == 2 and text[0].startswith("row 0 query: exact")
    assert succeeded("leaks", "--pairs", work / "train_b.jsonl", "--against", f"{work}/coll:test", "--json").out.count('"query"') == 0  # fmt: skip
    explained = medley("leaks", "--pairs", pairs, "--against", f"{work}/coll", "--explain")
    assert explained.code == 1 and "coll:dev d1: antibiotic against Lyme disease" in explained.out


def check_results(results: dict) -> dict:
    """The keys that DESIGN gives to results.json."""
    assert set(results) == {"model", "tasks"}
    for task in results["tasks"].values():
        assert {"split", "ndcg_at_10", "recall_at_100", "mrr_at_10", "per_query"} <= set(task)
        assert all("ndcg_at_10" in scores for scores in task["per_query"].values())
    return results["tasks"]


def test_evaluate_bm25_and_compare(work, tmp_path, tiny_model_folder):
    files = [tmp_path / "bm25.json", tmp_path / "model.json"]
    for model, file in zip(("bm25", tiny_model_folder), files, strict=True):
        done = succeeded("evaluate", model, "--task", f"{work}/coll:test", "--out", file, "--json")
        assert done.json() == json.loads(file.read_text())
        assert set(check_results(done.json())["coll"]["per_query"]) == {"t1", "t2", "t3", "t4"}
    rows = succeeded("compare", *files, "--json").json()
    first, second = (json.loads(file.read_text())["tasks"]["coll"]["ndcg_at_10"] for file in files)
    assert [(row["a"], row["b"]) for row in rows] == [(str(files[0]), str(files[1]))]
    assert rows[0]["difference"] == pytest.approx(first - second)
    assert 0 < rows[0]["p_value"] <= rows[0]["p_holm"] <= 1
    text = succeeded("compare", *files).out
    assert f"{first - second:+.4f}" in text and "p = " in text
    table = succeeded("evaluate", "bm25", "--task", f"{work}/coll:test").out
    assert f"{first:.4f}" in table and "nDCG@10" in table and "similarity" not in table
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(json.loads(files[0].read_text()), indent=3))
    for same, said in ((files[0], "is given twice"), (copy, f"holds the same results as {files[0]}")):
        again = medley("compare", files[0], same)
        assert (again.code, again.out) == (2, "") and said in again.err
    assert medley("compare", f"{files[0]},{copy}", files[1]).code == 2, "one seed counted as two"


def test_names_in_tables_are_shown_and_not_obeyed(capsys):
    nasty = "a\x1b[31m\u202e[bold]"
    scored = {"model": {}, "tasks": {nasty: {"ndcg_at_10": 0.5}}}
    print_evaluation({nasty: scored}, {})
    print_results({"variants": {nasty: scored}}, as_json=False)
    print_steps([{"step": nasty, "state": "done", "why": nasty}], as_json=False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown
    assert shown.count("[bold]") == 6 and "\\x1b[31m\\u202e[bold]" in shown


def test_a_table_says_what_its_numbers_are(capsys):
    ranked, similar = {"ndcg_at_10": 0.5}, {"spearman": 0.4}
    for tasks, title in (
        ({"a": ranked}, "nDCG@10"),
        ({"b": similar}, "Spearman"),
        ({"a": ranked, "b": similar}, "nDCG@10 (b: Spearman)"),
    ):
        print_evaluation({"model": {"model": {}, "tasks": tasks}}, {})
        assert capsys.readouterr().out.splitlines()[0].strip() == title


def test_a_table_of_many_tasks_keeps_its_numbers_in_a_pipe(tmp_path):
    for number in range(8):
        write_collection(tmp_path / f"a_collection_{number}")
    tasks = [part for folder in sorted(tmp_path.iterdir()) for part in ("--task", f"{folder}:test")]
    table = succeeded("evaluate", "bm25", *tasks).out
    assert len(re.findall(r"\b[01]\.\d{4}\b", table)) == 9


def test_evaluate_the_bundled_medicine_collection(tmp_path):
    done = succeeded("evaluate", "bm25", "--task", "demo/medicine:test", "--out", tmp_path / "r.json", "--json")  # fmt: skip
    task = check_results(done.json())["medicine"]
    assert task["split"] == "test" and len(task["per_query"]) == 100
    assert 0.3 < task["ndcg_at_10"] < 0.95


@pytest.fixture(scope="module")
def experts(work: Path, tiny_model_folder: Path) -> dict[str, str]:
    """Two experts trained by the command line, with what was printed."""
    found = {}
    for name in ("train_a", "train_b"):
        out = work / f"expert_{name}"
        done = succeeded(
            "train", "--base", tiny_model_folder, "--pairs", work / f"{name}.jsonl", "--out", out,
            "--learning-rate", "0.01", "--batch-size", "4", "--epochs", "2", "--instruction", "Find the passage",
        )  # fmt: skip
        printed = done.json()
        assert (printed["pairs"], printed["steps"]) == (4, 2) and printed["loss"] > 0
        assert {"adapter_config.json", "adapter_model.safetensors", "medley.json"} <= set(contents(out))
        found[name.removeprefix("train_")] = str(out)
    return found


@pytest.mark.slow
def test_merge_then_search_merge_then_evaluate_then_tune(work, tmp_path, experts, tiny_model_folder):
    content = {"base": str(tiny_model_folder), "experts": experts, "method": "linear", "weights": {"a": 0.6, "b": 0.4}}  # fmt: skip
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(content))
    done = succeeded("merge", file, "--out", tmp_path / "merged")
    assert done.json()["gate"]["min_cosine_to_scored"] > 0.9999

    search = {"strategy": "surrogate", "encodings": 6, "grid": [0, 0.5, 1], "dev": [f"{work}/coll:dev"]}
    file.write_text(yaml.safe_dump({**content, "weights": {}, "search": search}))
    done = succeeded("search-merge", file, "--out", tmp_path / "search")
    written = json.loads((tmp_path / "search" / "search.json").read_text())
    assert {"strategy", "encodings", "best", "candidates"} <= set(written)
    assert done.json() == written["best"] and written["encodings"] <= 6
    assert {"coefficients", "score", "scores", "real"} <= set(written["candidates"][0])
    real = [c["score"] for c in written["candidates"] if c["real"]]
    assert written["best"]["score"] == max(real)

    out = tmp_path / "results.json"
    done = succeeded("evaluate", tmp_path / "search" / "model", "--task", f"{work}/coll:dev", "--out", out, "--json")  # fmt: skip
    score = check_results(done.json())["coll"]["ndcg_at_10"]
    assert score == pytest.approx(written["best"]["score"], abs=1e-6)

    tuned = tmp_path / "prompt.json"
    done = succeeded("tune-prompt", tmp_path / "merged", "--collection", f"{work}/coll:dev", "--out", tuned)
    choice = json.loads(tuned.read_text())
    assert done.out.strip() == choice["instruction"]
    best = max((c for c in choice["candidates"] if c["finished"]), key=lambda c: c["score"])
    proven = choice["proof"]["verdict"] == "better"
    assert choice["instruction"] == (best["instruction"] if proven else choice["seed_instruction"])


@pytest.mark.slow
def test_results_go_to_standard_output_and_progress_to_standard_error(work, tmp_path, tiny_model_folder):
    recipe = write_recipe(tmp_path / "small.yaml", tiny_model_folder, work / "coll")
    done = medley_process("run", recipe, "--out", tmp_path / "run", "--until", "prompts", cwd=tmp_path)
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines()[0] == "[1/22] sources/a", "and nothing that a library has to say"
    news = r"\[\d+/22\] \w+/\w+|\w+/\w+: cut to \d+ tokens, so that the rest is not read: .*"
    assert all(re.fullmatch(news, line) for line in done.err.splitlines()), done.err
    done = medley_process("status", tmp_path / "run", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert [row["state"] for row in done.json()][:9] == ["done"] * 9
    evaluate = ["evaluate", tiny_model_folder, "--task", f"{work}/coll:test", "--json"]
    done = medley_process(*evaluate, cwd=tmp_path)
    first, second = done.err.splitlines()  # what was guessed and what is cut, and nothing more
    assert done.code == 0 and "is a language model, no retriever" in first and "has 256 positions" in second
    check_results(done.json())
