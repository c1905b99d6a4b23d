"""Valid files of every kind that people bring, spoilt at random, and what Medley's readers make of each.

Run as a program it reads many in one process, gives some to real commands, and prints what came of them by kind:

    python tests/fuzz.py --inputs 2000 --commands 50
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.collections import load_collection
from medley.documents import read_documents, shards_of
from medley.errors import InputError, MedleyError
from medley.evaluate.scores import evaluate_bm25
from medley.llm.dialect import adapted, reply_of
from medley.llm.messages import Message, Sampling
from medley.llm.transport import Answer
from medley.merge.settings import read_merge_file
from medley.pairs import read_pairs, write_pairs
from medley.prompts.library import read_library
from medley.recipe import load_recipe, write_recipe
from medley.review.decisions import apply_verdicts
from medley.review.sheet import draw_items
from medley.review.table import read_sheet, write_sheet
from medley.synthesize.queries import checked_query
from medley.synthesize.tasks import _checked as checked_example
from medley.synthesize.variants import read_variants
from small import medley, training_rows, write_collection, write_lines
from small import write_recipe as small_recipe

SECONDS = 5.0
"""What one input may take of a processor."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: the file that is spoilt, and what reads it. `command` is the same as a user calls it."""

    file: str
    read: Callable[[Path], object]
    command: tuple[str, ...] = ()
    refuses: tuple[type[Exception], ...] = (MedleyError,)


def _collection(folder: Path) -> None:
    collection = load_collection(f"{folder}/coll:test")
    assert len(list(collection.corpus)) == len(collection.corpus) and collection.judgements
    assert all(text.strip() for text in collection.queries.values())
    assert [passage.id for passage in collection.corpus] == [
        collection.corpus[i].id for i in range(len(collection.corpus))
    ]
    evaluate_bm25([collection])


def _pairs(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        pairs = read_pairs(folder / name)
        write_pairs(folder / "again.jsonl", pairs)
        assert [(p.query, p.positive, p.negatives) for p in _again(read_pairs, folder / "again.jsonl")] == [
            (p.query, p.positive, p.negatives) for p in pairs
        ]
        write_sheet(folder / "drawn.csv", draw_items(pairs, count=20, seed=1))

    return read


def _recipe(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    (folder / "again.yaml").write_text(write_recipe(recipe), encoding="utf-8")
    assert _again(load_recipe, folder / "again.yaml") == recipe


def _again(read: Callable[[Path], Any], path: Path) -> Any:
    """What Medley wrote itself it has to read."""
    try:
        return read(path)
    except MedleyError as refusal:
        raise AssertionError(f"written and not read: {refusal}") from refusal


def _results(folder: Path) -> None:
    done = medley("compare", folder / "results.json", folder / "others.json")
    if done.code == 2:
        raise InputError(done.err.strip().removeprefix("medley: "))
    assert done.code == 0, done.err


def _sheet(folder: Path) -> None:
    apply_verdicts(read_pairs(folder / "guarded.jsonl"), read_sheet(folder / "sheet.csv"))


def _reply(folder: Path) -> None:
    answer = Answer(200, {}, (folder / "reply.json").read_bytes())
    adapted_after_refusal(answer)
    reply = reply_of(answer, [Message("user", "Write a query.")])
    checked_query(reply, "Amoxicillin treats ear infections in children.")
    checked_example(reply)


def adapted_after_refusal(answer: Answer) -> None:
    """Servers' words are searched for parameters whatever they are."""
    from medley.llm.dialect import Dialect

    adapted(Dialect(), Sampling(), answer)


def _documents(folder: Path) -> None:
    for document, _ in read_documents(shards_of(folder / "documents.jsonl")):
        assert document.text.strip()


KINDS: dict[str, Kind] = {
    "recipe": Kind("recipe.yaml", _recipe, ("run", "recipe.yaml", "--plan")),
    "merge file": Kind("merge.yaml", lambda f: read_merge_file(f / "merge.yaml"), ("merge", "merge.yaml", "--out", "out")),
    "mergekit file": Kind("kit.yaml", lambda f: read_merge_file(f / "kit.yaml"), ("merge", "kit.yaml", "--out", "out")),
    "pairs": Kind("pairs.jsonl", _pairs("pairs.jsonl"), ("mine", "--pairs", "pairs.jsonl", "--out", "out.jsonl")),
    "pairs table": Kind("pairs.csv", _pairs("pairs.csv"), ("mine", "--pairs", "pairs.csv", "--out", "out.jsonl")),
    "guarded pairs": Kind(
        "guarded.jsonl", _pairs("guarded.jsonl"), ("review", "--pairs", "guarded.jsonl", "--out", "out.csv")
    ),
    "corpus": Kind("coll/corpus.jsonl", _collection, ("evaluate", "bm25", "--task", "coll:test", "--out", "out.json")),
    "queries": Kind("coll/queries.jsonl", _collection, ("evaluate", "bm25", "--task", "coll:test", "--out", "out.json")),
    "qrels": Kind("coll/qrels/test.tsv", _collection, ("evaluate", "bm25", "--task", "coll:test", "--out", "out.json")),
    "review sheet": Kind(
        "sheet.csv", _sheet, ("review", "--pairs", "guarded.jsonl", "--read", "sheet.csv", "--out", "out.jsonl")
    ),
    "results": Kind("results.json", _results, ("compare", "results.json", "others.json")),
    "reply": Kind("reply.json", _reply, refuses=(ValueError,)),
    "library": Kind("library.yaml", lambda f: read_library.__wrapped__(f / "library.yaml")),
    "variants": Kind("variants.yaml", lambda f: read_variants(f / "variants.yaml")),
    "documents": Kind("documents.jsonl", _documents),
}  # fmt: skip


def write_valid(folder: Path) -> Path:
    """A valid file of each kind."""
    write_collection(folder / "coll")
    small_recipe(
        folder / "recipe.yaml", "tiny", "coll", **{"sources.a": {"pairs": "pairs.jsonl", "licence": "MIT"}}
    )
    rows = training_rows("train_a")
    guard = {
        "kept": [{"verdict": "keep", "signal": "margin", "value": 0.5, "limit": 0.9}],
        "removed": [
            {"text": "taken out", "origin": "mined", "verdict": "drop", "signal": "margin", "reason": "near"}
        ],
    }
    write_lines(folder / "pairs.jsonl", rows)
    mined = {"retriever": "bm25", "ids": ["p2"], "scores": [0.5], "ranks": [4]}
    guarded = [
        {**row, "provenance": {"guard": guard, "row": n, "mined": mined}} for n, row in enumerate(rows)
    ]
    write_sheet(
        folder / "sheet.csv",
        draw_items(read_pairs(write_lines(folder / "guarded.jsonl", guarded)), count=9, seed=1),
    )
    sheet = (folder / "sheet.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    verdicts = ["", "drop", "keep", "promote", "drop pair"]
    filled = [line.replace(",,", f",{verdicts[n % 5]},", 1) for n, line in enumerate(sheet)]
    (folder / "sheet.csv").write_text("".join(filled), encoding="utf-8", newline="")
    table = [
        "query,positive,negative_1,source",
        *(f'"{r["query"]}","{r["positive"]}","{r["negatives"][0]}",s' for r in rows),
    ]
    (folder / "pairs.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    merge = {
        "base": "tiny", "experts": {"a": "a", "b": "b"}, "method": "ties", "weights": {"a": 0.6, "b": [0.2, 0.8]},
        "segments": 2, "parameters": {"normalize": False, "density": 0.5}, "keep": {"from": "a", "tensors": ["embed"]},
        "search": {"strategy": "surrogate", "encodings": 12, "dev": ["coll:dev"]}, "dtype": "float32",
    }  # fmt: skip
    (folder / "merge.yaml").write_text(yaml.safe_dump(merge, sort_keys=False))
    models = [
        {
            "model": "a",
            "parameters": {"weight": [0, 0.3, 1], "density": [{"filter": "mlp", "value": 0.5}, {"value": 1}]},
        },
        {"model": "b", "parameters": {"weight": 0.5}},
    ]
    kit = {
        "merge_method": "ties",
        "base_model": "tiny",
        "models": models,
        "parameters": {"normalize": True},
        "dtype": "float32",
    }
    (folder / "kit.yaml").write_text(yaml.safe_dump(kit, sort_keys=False))
    example = {
        "query": "which penicillin for a child",
        "positive": "Amoxicillin treats ears.",
        "negative": "Copper conducts.",
    }
    reply = {
        "id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": json.dumps(example)}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 30},
    }  # fmt: skip
    (folder / "reply.json").write_text(json.dumps(reply))
    for name, shift in (("results.json", 0.0), ("others.json", 0.1)):
        per_query = {str(n): {"ndcg_at_10": (n % 5) / 10 + shift, "map": 0.5} for n in range(20)}
        scores = {"split": "test", "ndcg_at_10": 0.5, "queries": 20, "per_query": per_query}
        (folder / name).write_text(
            json.dumps({"model": {"name": name}, "tasks": {"one": scores, "two": scores}})
        )
    entries = [
        "Find it",
        {"text": "Given a question, find the answer", "kind": "own", "domain": "any", "source": "me"},
    ]
    (folder / "library.yaml").write_text(yaml.safe_dump({"version": 1, "instructions": entries}))
    (folder / "variants.yaml").write_text(
        yaml.safe_dump({"one": {"weight": 1, "text": "Write"}, "two": {"text": "Ask"}})
    )
    sections = [{"heading": "Use", "text": "Twice a day."}]
    write_lines(
        folder / "documents.jsonl",
        [{"title": "Insulin", "text": "Lowers glucose.", "sections": sections}] * 3,
    )
    return folder


BYTES = (
    b"", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\xbd", b"\\ud83d", b"\\u0000", b"\xe2\x80\xa8", b"\x1b[31m",
    b"null", b"NaN", b"Infinity", b"1e999", b"-1", b"0.5", b"true", b"no", b"[]", b"{}", b'""', b'"', b"'", b"\\", b"\n", b"\r",
    b"\r\n", b"\t", b",", b";", b": ", b"- ", b"#", b"&a ", b"*a", b"<<: *a", b"!!int ", b"!!python/name:os.system ", b"? ", b"|",
    b"%", b"=cmd()", b"..", b"/", b"$HOME", b"$NOWHERE/", b"~", b"~nobody/", b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"9" * 5000, b"a" * 200_000,
)  # fmt: skip
"""Pieces that parsers stumble over."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 0.5, 1e308, float("nan"), float("inf"), 10**30, 10**400, "", " ", "x", "no", "1e-3", "\ud83d",
    "é", "a\nb", "a\tb", "\x00", "x" * 100_000, "..", "/", "a:b", "$NOWHERE/x", "~nobody/x", "nan", "inf", [], {}, [[]], [None], [""], ["x", 1],
    {"a": 1}, {"": ""}, {"text": "x"}, [{}], -0.0, "p1", "a1",
)  # fmt: skip
"""Values of every type that may stand where another is needed."""


def spoilt(content: bytes, chance: random.Random) -> bytes:
    """A valid file with one to three things changed: bytes anywhere, or values of its JSON or YAML."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = chance.choice((_with_bytes, _with_bytes, _with_values))(content, chance)
    return content


def _with_bytes(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((0, 0, 1, 3, 10, 200)))
    if chance.random() < 0.1:
        return content[:start]
    if chance.random() < 0.1:
        return content[:end] + content[start:]
    return content[:start] + chance.choice(BYTES) + content[end:]


def _with_values(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines() or [b""]
    place = chance.randrange(len(lines))
    try:
        return b"\n".join(
            [*lines[:place], _dumped(_changed(json.loads(lines[place]), chance)), *lines[place + 1 :]]
        )
    except (ValueError, RecursionError):
        pass
    try:
        return _dumped(_changed(yaml.safe_load(content), chance))
    except Exception:  # whatever PyYAML makes of what was spoilt before
        return _with_bytes(content, chance)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=bool(len(str(value)) % 2)).encode("utf-8", "surrogatepass")


def _changed(value: Any, chance: random.Random) -> Any:
    """The same with one value, key or element changed, at any depth."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        what = chance.random()
        if what < 0.1:
            del copy[key]
        elif what < 0.2 and isinstance(copy, dict):
            copy[chance.choice(("x", "", "no", "a/b", "..", "a\nb", "\ud83d", str(key) + "s"))] = copy.pop(
                key
            )
        elif what < 0.25 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = _changed(value[key], chance)
        return copy
    if chance.random() < 0.1:
        deep: Any = value
        for _ in range(chance.choice((1, 60, 700))):
            deep = [deep] if chance.random() < 0.5 else {"a": deep}
        return deep
    return chance.choice(VALUES)


def outcome(kind: Kind, folder: Path) -> str:
    """`read`, or the one sentence of a refusal; AssertionError for anything else that comes of an input."""
    begin = time.process_time()
    try:
        kind.read(folder)
        said = "read"
    except kind.refuses as refusal:
        said = f"{type(refusal).__name__}: {refusal}"
        if isinstance(refusal, MedleyError):
            check_sentence(str(refusal))
            assert refusal.exit_code == 2, f"exit code {refusal.exit_code}: {refusal}"
    taken = time.process_time() - begin
    assert taken < SECONDS, f"took {taken:.1f} s, then {said[:200]}"
    return said


def check_sentence(said: str) -> None:
    """One sentence on one line, of a length that a person reads."""
    assert "\n" not in said and "\r" not in said, f"several lines: {said!r:.300}"
    assert said.rstrip().endswith((".", "?")), f"no end: {said!r:.300}"
    assert len(said) < 1100, f"{len(said)} characters: {said!r:.300}"


def run_inputs(number: int, counts: Counter[tuple[str, str]] | None = None) -> None:
    """Read `number` spoilt files in this process. Raises what is neither a reading nor a refusal, with the input."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_valid(Path(name))
        for kind in KINDS.values():  # what reads them is loaded first, so that no input is billed for it
            kind.read(folder)
        valid = {kind.file: (folder / kind.file).read_bytes() for kind in KINDS.values()}

        @settings(
            max_examples=number,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32))
        def spoil(name: str, seed: int) -> None:
            kind = KINDS[name]
            path = folder / kind.file
            path.write_bytes(spoilt(valid[kind.file], random.Random(seed)))
            try:
                said = outcome(kind, folder)
            finally:
                path.write_bytes(valid[kind.file])
            if counts is not None:
                counts[name, "read" if said == "read" else "refused"] += 1

        spoil()


def run_commands(number: int, counts: Counter[tuple[str, str]]) -> Iterator[str]:
    """Give spoilt files to real commands; yields a line for each that did anything but work or refuse as it should."""
    with_command = [name for name in sorted(KINDS) if KINDS[name].command]
    for seed in range(number):
        kind = KINDS[with_command[seed % len(with_command)]]
        with tempfile.TemporaryDirectory() as place:
            folder = write_valid(Path(place))
            path = folder / kind.file
            path.write_bytes(spoilt(path.read_bytes(), random.Random(seed)))
            before = {file for file in folder.rglob("*")}
            done = subprocess.run(
                [sys.executable, "-m", "medley", *kind.command],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=120,
            )
            after = {file for file in folder.rglob("*")}
        counts[with_command[seed % len(with_command)], f"exit {done.returncode}"] += 1
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            yield f"{seed} {kind.command}: exit {done.returncode}: {done.stderr[-1500:]}"
        elif done.returncode == 2:
            try:
                check_sentence(done.stderr.splitlines()[-1])
                assert after == before, f"written: {after - before}"
            except AssertionError as problem:
                yield f"{seed} {kind.command}: {problem}"


def main() -> None:
    """Print what came of many spoilt files, by kind."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=2000)
    options.add_argument("--commands", type=int, default=50)
    given_options = options.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    run_inputs(given_options.inputs, counts)
    print("| kind | read | refused in one sentence |\n|---|---|---|")
    for name in sorted(KINDS):
        print(f"| {name} | {counts[name, 'read']} | {counts[name, 'refused']} |")
    print(
        f"| all | {sum(n for (_, k), n in counts.items() if k == 'read')} | {sum(n for (_, k), n in counts.items() if k != 'read')} |"
    )
    called: Counter[tuple[str, str]] = Counter()
    faults = list(run_commands(given_options.commands, called))
    print("\n" + "\n".join(f"medley {name}: {code}: {n}" for (name, code), n in sorted(called.items())))
    print(f"{given_options.commands} commands, {len(faults)} faults", *faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
