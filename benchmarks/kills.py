"""A small run that is killed with `kill -9` at random moments, again and again, until it comes to its end.

    python benchmarks/kills.py --out /tmp/kills > docs/results/kills.tables.md

The run (20 to 60 s on two cores) is made once without interruption. Then `--kills` times, and as often with
`--devices 2`, its process alone is killed, not its children, at a moment drawn anew (`--seed`), and the same command is
given again at once; after `--in-a-row` kills it is left to finish, and the next chain begins. Each chain's results and
weights are compared with the uninterrupted run's, byte by byte, and so are the names of all files, those in a
temporary folder of its own (TMPDIR) too; and no process of the chain may live on. Chains that are done stand in
OUT/chains.jsonl: a benchmark that was stopped goes on with the next. `--chains` ends it after so many.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

RECIPE = """
name: small
base: tiny
retriever: {max_length: 32}
sources:
  care: {collection: demo/medicine, split: train_care, limit: 12}
  sci: {collection: demo/general, split: train_science, limit: 12}
negatives: {mined: {retriever: bm25, depth: 20, per_query: 1}, generated: {per_query: 1}}
experts:
  care: {sources: [care]}
  sci: {sources: [sci]}
train: {lora: {rank: 4, alpha: 4}, learning_rate: 1e-2, batch_size: 4, mini_batch_size: 4, epochs: 3,
        checkpoint_minutes: 0}
merge:
  methods: [task_arithmetic]
  search: {strategy: grid, grid: [0, 1]}
  dev: ["demo/medicine:dev"]
  dtype: float32
evaluate:
  medical: ["demo/medicine:test"]
  baselines: [bm25, base, experts]
"""
MARK = "MEDLEY_KILLS_CHAIN"
"""In the environment of a chain's processes, so that they are found wherever they went."""
GONE_WITHIN_S = 60.0


@dataclass(frozen=True)
class Chain:
    """One run, killed and gone on with until its end; `different` and `left` name what should not be."""

    devices: int
    killed_after_s: list[float]
    steps_done: list[int]
    different: list[str]
    left: list[str]


def command(place: Path, name: str, devices: int) -> list[str]:
    """The run, as a user would start it."""
    more = ["--devices", str(devices)] if devices > 1 else []
    return [
        sys.executable,
        "-m",
        "medley",
        "run",
        str(place / "small.yaml"),
        "--out",
        str(place / name),
        *more,
    ]


def start(place: Path, name: str, devices: int) -> subprocess.Popen[bytes]:
    """Start it, with a temporary folder of its own."""
    scratch = place / f"{name}.tmp"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), MARK: name}
    with (place / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command(place, name, devices), stdout=log, stderr=log, env=environment)


def living(name: str) -> list[psutil.Process]:
    """Processes of a chain."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def steps_in(run: Path) -> int:
    """How many steps are done."""
    return len(list(run.glob("stages/*/[!.]*/artefact.json")))


def names_in(run: Path) -> set[str]:
    """All files and folders of a run."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def differences(whole: Path, run: Path) -> list[str]:
    """What a chain's run has other than the uninterrupted one: results without times, and the model."""
    if not (run / "results.json").is_file():
        return ["no results"]
    variants = [json.loads((folder / "results.json").read_text())["variants"] for folder in (whole, run)]
    first, second = ({name: v["tasks"] for name, v in found.items()} for found in variants)
    files = [
        path for path in sorted((whole / "model").rglob("*")) if path.is_file() and path.name != "README.md"
    ]
    other = [
        path.relative_to(whole).as_posix()
        for path in files
        if path.read_bytes() != (run / path.relative_to(whole)).read_bytes()
    ]
    return [*(["results.json"] if first != second else []), *other]


def chain(
    place: Path, name: str, *, devices: int, kills: int, longest_s: float, draw: random.Random
) -> Chain:
    """Kill a run so many times, or until it ends before the next kill; then let it end."""
    for old in (place / name, place / f"{name}.tmp"):
        shutil.rmtree(old, ignore_errors=True)
    run, after, steps = place / name, [], []
    while len(after) < kills:
        process = start(place, name, devices)
        moment = draw.uniform(0, longest_s)
        try:
            process.wait(moment)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        after.append(round(moment, 1))
        steps.append(steps_in(run))
        print(f"{name}: killed after {moment:.1f} s, {steps[-1]} steps done", file=sys.stderr, flush=True)
    code = start(place, name, devices).wait()
    _, alive = psutil.wait_procs(living(name), timeout=GONE_WITHIN_S)
    left = [f"process {process.pid}" for process in alive]
    left += sorted(names_in(run) - names_in(place / "whole"))
    left += [f"not there: {name}" for name in sorted(names_in(place / "whole") - names_in(run))]
    left += [
        f"TMPDIR/{entry}" for entry in sorted(names_in(place / f"{name}.tmp") - names_in(place / "whole.tmp"))
    ]
    different = [*([f"exit {code}"] if code else []), *differences(place / "whole", run)]
    return Chain(devices, after, steps, different, left)


def table(chains: list[Chain], total_steps: int) -> str:
    """Markdown: a row for each chain, and the sums."""
    lines = [
        "| --devices | killed after (s) | steps done by then, "
        f"of {total_steps} | results and model | left behind |",
        "|---|---|---|---|---|",
    ]
    for one in chains:
        moments, steps = (", ".join(map(str, values)) for values in (one.killed_after_s, one.steps_done))
        same = "the same" if not one.different else "; ".join(one.different)
        lines.append(f"| {one.devices} | {moments} | {steps} | {same} | {'; '.join(one.left) or 'nothing'} |")
    kills = {
        devices: sum(len(c.killed_after_s) for c in chains if c.devices == devices) for devices in (1, 2)
    }
    right = sum(not one.different and not one.left for one in chains)
    lines += [
        "",
        f"{kills[1]} kills without and {kills[2]} with `--devices 2`; {right} of {len(chains)} chains right.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Go on with the chains until there are enough kills, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and what is known of them")
    parser.add_argument("--kills", type=int, default=15, help="without --devices, and as many with")
    parser.add_argument("--in-a-row", type=int, default=4)
    parser.add_argument("--chains", type=int, default=1_000_000, help="stop after so many")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    place = wanted.out.resolve()
    place.mkdir(parents=True, exist_ok=True)
    (place / "small.yaml").write_text(RECIPE, encoding="utf-8")
    kept = place / "chains.jsonl"
    if not (place / "seconds").is_file():
        shutil.rmtree(place / "whole", ignore_errors=True)
        began = time.monotonic()
        if start(place, "whole", 1).wait():
            sys.exit(f"the uninterrupted run failed; see {place / 'whole.log'}")
        (place / "seconds").write_text(str(time.monotonic() - began))
    longest_s = float((place / "seconds").read_text())
    done = [Chain(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.is_file() else []
    for _ in range(wanted.chains):
        counts = {n: sum(len(c.killed_after_s) for c in done if c.devices == n) for n in (1, 2)}
        devices = min(counts, key=lambda n: counts[n])
        if counts[devices] >= wanted.kills:
            break
        name = f"chain-{len(done)}"
        kills = min(wanted.in_a_row, wanted.kills - counts[devices])
        draw = random.Random(f"{wanted.seed} {name}")
        done.append(chain(place, name, devices=devices, kills=kills, longest_s=longest_s, draw=draw))
        with kept.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(done[-1])) + "\n")
        if not done[-1].different and not done[-1].left:
            shutil.rmtree(place / name)
    print(table(done, steps_in(place / "whole")))


if __name__ == "__main__":
    main()
