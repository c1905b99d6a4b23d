"""Merging beside mergekit: parity, weight handling per candidate, 30 candidates end to end, checkpoint to checkpoint.

    python benchmarks/merge.py parity
    python benchmarks/merge.py candidates
    python benchmarks/merge.py search
    python benchmarks/merge.py checkpoint --layers 28 --vocabulary 151936 --methods linear task_arithmetic

`parity` trains two LoRA experts of the bundled base on the bundled demo for a few steps and compares every method
with mergekit's own functions. `candidates` and `search` do the same candidates in turns: in memory, and as people do
it today (mergekit to disk, load, encode). `checkpoint` writes random checkpoints of Qwen3-0.6B's width once to a
temporary folder and merges them in a process of its own for each tool and method. Both wall time and processor time
are printed, since the machine may be shared; ratios are of processor time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = (0.84, 0.41, 0.12, 0.3)


@dataclass
class Spent:
    """Wall and processor seconds."""

    wall: float = 0.0
    processor: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add what the block takes."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mergekit_config(
    base: Path, experts: list[Path], method: str, weights: Any, **parameters: Any
) -> dict[str, Any]:
    """A configuration as people write it, but with arithmetic in float32."""
    models = [
        {"model": str(path), "parameters": {"weight": float(weight)} | parameters}
        for path, weight in zip(experts, weights, strict=True)
    ]
    config: dict[str, Any] = {"models": models, "merge_method": method, "dtype": "float32"}
    return config if method == "linear" else config | {"base_model": str(base)}


def run_mergekit(config: dict[str, Any], out: Path) -> None:
    """mergekit's own merge to disk."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, copy_tokenizer=True, write_model_card=False, lazy_unpickle=True)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)


def trained_experts(root: Path, count: int, steps: int) -> tuple[Path, list[Path]]:
    """Adapters on the bundled base, each trained on another slice of the bundled demo."""
    from medley.backbone import base_fingerprint
    from medley.collections import load_collection
    from medley.encoder import RetrieverSettings, build_retriever
    from medley.expert import save_expert
    from medley.pairs import pairs_from_collection
    from medley.train.contrastive import train
    from medley.train.settings import TrainSettings

    rows = list(pairs_from_collection(load_collection("demo/medicine:train_care"), instruction="Find it"))
    settings, folders = RetrieverSettings(max_length=64, dtype="float32"), []
    training = TrainSettings.model_validate({"learning_rate": 2e-3, "batch_size": 8, "epochs": 1})
    for index in range(count):
        retriever = build_retriever("tiny", settings, instruction="Find it", device="cpu")
        identity = base_fingerprint(retriever)
        train(retriever, rows[index::count][: 8 * steps], training, seed=index)
        folders.append(root / f"expert{index}")
        save_expert(retriever, folders[-1], base="tiny", base_identity=identity, settings=settings)
    base = root / "base"
    plain = build_retriever("tiny", settings, instruction="Find it", device="cpu")
    plain.model[0].model.save_pretrained(base)
    plain.model.tokenizer.save_pretrained(base)
    return base, folders


def folded(base: Path, adapters: list[Path], root: Path) -> list[Path]:
    """The adapters folded into checkpoints, as mergekit needs them."""
    from medley.encoder import RetrieverSettings, build_retriever
    from medley.expert import read_expert
    from medley.lowrank import fold

    folders = []
    for adapter in adapters:
        retriever = build_retriever(str(base), RetrieverSettings(dtype="float32"), device="cpu")
        fold(retriever, read_expert(adapter).layers)
        folders.append(root / f"{adapter.name}-whole")
        retriever.model[0].model.save_pretrained(folders[-1])
        retriever.model.tokenizer.save_pretrained(folders[-1])
    return folders


def parity(arguments: argparse.Namespace) -> None:
    """Largest difference of each method to mergekit's kernel on trained experts, relative to the tensor's largest."""
    import torch
    from mergekit.merge_methods import BasePolicy, get
    from mergekit.merge_methods.api import merge_tensors

    from medley.backbone import base_tensors
    from medley.encoder import RetrieverSettings, build_retriever
    from medley.expert import read_expert
    from medley.merge.fullweights import rows_of
    from medley.merge.methods import KeptEntries, TensorMerge, merge_tensor
    from medley.merge.settings import METHODS, MergeParameters
    from medley.merge.sources import AdapterSource

    with tempfile.TemporaryDirectory() as root:
        base, adapters = trained_experts(Path(root), 3, arguments.steps)
        experts = [read_expert(folder) for folder in adapters]
        retriever = build_retriever(str(base), RetrieverSettings(dtype="float32"), device="cpu")
        tensors = base_tensors(retriever)
        chosen = [f"{name}.weight" for name in list(experts[0].layers)[:: arguments.every]]
        print("| method | parameters | largest difference | entries that differ |\n|---|---|---|---|")
        for method in METHODS:
            kernel: Any = get(method)
            if method in ("dare_ties", "dare_linear", "della", "della_linear"):
                continue  # random: by seed and by moments in the tests
            used = experts[:2] if method in ("slerp", "nuslerp", "nearswap", "arcee_fusion") else experts
            known = {parameter.name for parameter in kernel.spec.parameters}
            variants: list[dict[str, Any]] = [{"t": 0.3}] if "t" in known else [{}]
            if "density" in known and method != "task_arithmetic":
                variants = [{"density": d, "normalize": n} for d in (0.2, 0.5, 0.9) for n in (True, False)]
            elif "normalize" in known:
                variants = [{"normalize": True}, {"normalize": False}]
            for values in variants:
                worst, differing, total = 0.0, 0, 0
                for name in chosen:
                    start = tensors[name].detach()
                    weights = np.array(WEIGHTS[: len(used)])
                    sources = [AdapterSource(expert) for expert in used]
                    parameters = MergeParameters.model_validate(values)
                    merge = TensorMerge(
                        name, tuple(start.shape), rows_of(start), sources, weights, parameters
                    )
                    found = torch.cat([rows for *_, rows in merge_tensor(method, merge, KeptEntries())])
                    versions = [
                        start + expert.layers[name.removesuffix(".weight")].matrix() for expert in used
                    ]
                    ids: list[Any] = list(range(len(used)))
                    given = values | (
                        {"weight": dict(enumerate(map(float, weights)))} if "weight" in known else {}
                    )
                    based = kernel.spec.contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL)
                    if based and not kernel.spec.contract.max_inputs == len(used) == 2:
                        ids, versions = ["base", *ids], [start, *versions]
                    expected = merge_tensors(
                        versions, kernel, ids=ids, base_index=0 if based else None, dtype=torch.float32,
                        parameters=given,
                    )  # fmt: skip
                    off = (found.view_as(expected) - expected).abs() / expected.abs().max()
                    worst = max(worst, float(off.max()))
                    differing += int((off > 1e-6).sum())
                    total += off.numel()
                said = ", ".join(f"{key} {value}" for key, value in values.items()) or "defaults"
                print(f"| {method} | {said} | {worst:.1e} | {differing:,} of {total:,} |", flush=True)


def candidates(arguments: argparse.Namespace) -> None:
    """Weight handling per candidate: in memory against mergekit to disk and load, in turns."""
    from medley.encoder import RetrieverSettings, build_retriever
    from medley.expert import read_expert
    from medley.merge.candidates import candidates as in_memory
    from medley.merge.coefficients import delta_coefficients
    from medley.merge.settings import MergeParameters

    settings = RetrieverSettings(max_length=64, dtype="float32")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base, adapters = trained_experts(root, 3, 2)
        wholes = folded(base, adapters, root)
        drawn = np.random.default_rng(0).uniform(0.1, 1, (arguments.candidates, 3, 1))
        print("| experts | method | tool | wall ms a candidate | processor ms | written | times less |")
        print("|---|---|---|---|---|---|---|")
        for kind, folders, method, values in (
            ("adapters", adapters, "task_arithmetic", {}),
            ("full weights", wholes, "task_arithmetic", {}),
            ("full weights", wholes, "ties", {"density": 0.5}),
        ):
            retriever = build_retriever(str(base), settings, device="cpu")
            experts = [read_expert(folder) for folder in folders]
            parameters = MergeParameters.model_validate(values)
            ours, theirs, first, written = Spent(), Spent(), Spent(), 0
            with in_memory(retriever, experts, method=method, parameters=parameters) as apply:
                for number, weights_KS in enumerate(drawn):
                    effective = delta_coefficients(method, weights_KS) if method != "ties" else weights_KS
                    with (first if number == 0 else ours).timed():
                        apply(effective)
                    if number and number <= arguments.turns:
                        out = root / "candidate"
                        with theirs.timed():
                            run_mergekit(
                                mergekit_config(base, wholes, method, weights_KS[:, 0], **values), out
                            )
                            build_retriever(str(out), settings, device="cpu")
                        written = bytes_below(out)
                        shutil.rmtree(out)
            rows = (
                ("in memory", ours, arguments.candidates - 1, 0),
                ("in memory, the first", first, 1, 0),
                ("mergekit, load", theirs, arguments.turns, written),
            )
            slow = theirs.processor / arguments.turns
            for tool, spent, count, size in rows:
                share = spent.processor / count
                print(
                    f"| {kind} | {method} | {tool} | {1e3 * spent.wall / count:.1f} | {1e3 * share:.1f} | "
                    f"{size / 1e6:.1f} MB | {slow / share:.0f} |",
                    flush=True,
                )


def search(arguments: argparse.Namespace) -> None:
    """The same candidates on the same pool, scored in memory and by way of the disk."""
    from medley.collections import load_collection
    from medley.encoder import RetrieverSettings, build_retriever
    from medley.expert import read_expert
    from medley.merge.candidates import candidates as in_memory
    from medley.merge.pool import build_pool, score_candidate

    settings = RetrieverSettings(max_length=64, dtype="float32")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base, adapters = trained_experts(root, 3, 4)
        wholes = folded(base, adapters, root)
        pool = build_pool(load_collection("demo/medicine:dev"), max_passages=arguments.pool, max_queries=20)
        drawn = np.random.default_rng(1).choice(np.linspace(0, 0.9, 10), (arguments.candidates, 3, 1))
        drawn[drawn.sum(axis=1)[:, 0] == 0] = 0.3
        from medley.merge.settings import MergeParameters

        retriever = build_retriever(str(base), settings, instruction="Find it", device="cpu")
        experts = [read_expert(folder) for folder in adapters]
        ours, theirs, written, differences = Spent(), Spent(), 0, []
        plain = MergeParameters.model_validate({})
        with in_memory(retriever, experts, method="task_arithmetic", parameters=plain) as apply:
            for weights_KS in drawn:
                with ours.timed():
                    in_memory_score = score_candidate(apply(weights_KS), [pool]).score
                out = root / "candidate"
                with theirs.timed():
                    config = mergekit_config(base, wholes, "task_arithmetic", weights_KS[:, 0])
                    run_mergekit(config, out)
                    loaded = build_retriever(str(out), settings, instruction="Find it", device="cpu")
                    score = score_candidate(loaded, [pool]).score
                written += bytes_below(out)
                shutil.rmtree(out)
                differences.append(abs(score - in_memory_score))
        count = len(drawn)
        print(f"{count} candidates, {len(pool.queries)} queries, {len(pool.passages)} passages")
        print(f"largest difference in nDCG@10: {max(differences):.1e}")
        print("| tool | wall s | processor s | written |\n|---|---|---|---|")
        print(f"| in memory | {ours.wall:.1f} | {ours.processor:.1f} | 0 |")
        print(
            f"| mergekit, load, encode | {theirs.wall:.1f} | {theirs.processor:.1f} | {written / 1e6:,.0f} MB |"
        )


def write_random(folder: Path, layers: int, vocabulary: int, *, like: Path | None, seed: int) -> None:
    """A random checkpoint of Qwen3-0.6B's width in bfloat16; with `like`, near another one."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from medley.merge.checkpoint import Checkpoint, row_blocks, write_checkpoint

    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: ("bfloat16", tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)) * (0.002 if like else 0.02)
    source = None if like is None else Checkpoint(like, name="base")
    place = 0

    def rows_of(name: str) -> Iterator[torch.Tensor]:
        nonlocal place
        shape = shapes[name][1]
        for start, stop in row_blocks(shape):
            size = (stop - start) * int(np.prod(shape[1:], dtype=int))
            place = (place + 7919 * seed) % (noise.numel() - size)
            rows = noise[place : place + size].view(stop - start, *shape[1:])
            if source is not None:
                stored = source.tensors[name.removeprefix("model.")]
                rows = rows + source.rows(stored, start, stop).float()
            yield rows.bfloat16()

    write_checkpoint(folder, shapes, rows_of)


def checkpoint(arguments: argparse.Namespace) -> None:
    """Four experts to a saved checkpoint, each merge in a process of its own."""
    root = Path(tempfile.mkdtemp(prefix="merge-"))
    try:
        base = root / "base"
        write_random(base, arguments.layers, arguments.vocabulary, like=None, seed=1)
        experts = [root / f"expert{index}" for index in range(4)]
        for index, folder in enumerate(experts):
            write_random(folder, arguments.layers, arguments.vocabulary, like=base, seed=index + 2)
        size = bytes_below(base)
        print(f"one model: {size / 1e6:,.0f} MB in bfloat16, {size / 2e6:,.0f} M parameters")
        print("| method | tool | wall s | processor s | peak memory | of the model | differs |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for method in arguments.methods:
            for tool in arguments.tools:
                job = {
                    "tool": tool,
                    "method": method,
                    "base": str(base),
                    "out": str(root / f"{tool}-{method}"),
                }
                job["experts"] = [str(path) for path in experts]  # type: ignore[assignment]
                done = subprocess.run(
                    [sys.executable, __file__, "child", json.dumps(job)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode != 0:
                    raise RuntimeError(done.stderr[-2000:])
                found = json.loads(done.stdout.splitlines()[-1])
                differs = ""
                if (root / f"mergekit-{method}").is_dir() and (root / f"medley-{method}").is_dir():
                    differs = difference(root / f"mergekit-{method}", root / f"medley-{method}")
                print(
                    f"| {method} | {tool} | {found['wall']:.0f} | {found['processor']:.0f} | "
                    f"{found['peak'] / 1e6:,.0f} MB | {found['peak'] / size:.2f} | {differs} |",
                    flush=True,
                )
            for tool in arguments.tools:
                shutil.rmtree(root / f"{tool}-{method}", ignore_errors=True)
    finally:
        shutil.rmtree(root)


def difference(theirs: Path, ours: Path) -> str:
    """How far two checkpoints are apart: the share of entries that are not the same bfloat16 number."""
    from medley.merge.checkpoint import Checkpoint

    left, right = Checkpoint(theirs, name="mergekit"), Checkpoint(ours, name="medley")
    differing = total = 0
    for name, stored in left.tensors.items():
        if name not in right.tensors:
            continue
        stop = min(2000, stored.shape[0])
        a, b = left.rows(stored, 0, stop), right.rows(right.tensors[name], 0, stop)
        differing += int((a != b).sum())
        total += a.numel()
    return f"{100 * differing / total:.4f} % of entries"


def child(arguments: argparse.Namespace) -> None:
    """One merge; prints its times and peak memory."""
    job = json.loads(arguments.job)
    values = {"density": 0.5} if job["method"] == "ties" else {}
    experts = [Path(path) for path in job["experts"]]
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    if job["tool"] == "medley":
        from medley.merge.settings import parse_merge_file
        from medley.merge.stream import merge_to_checkpoint

        content = {
            "base": job["base"], "experts": {path.name: str(path) for path in experts}, "method": job["method"],
            "weights": dict(zip([path.name for path in experts], WEIGHTS, strict=True)), "parameters": values,
            "output": "checkpoint", "dtype": "bfloat16",
        }  # fmt: skip
        merge_to_checkpoint(parse_merge_file(content, "benchmark"), Path(job["out"]), card="")
    else:
        config = mergekit_config(Path(job["base"]), experts, job["method"], WEIGHTS, **values)
        run_mergekit(config | {"out_dtype": "bfloat16"}, Path(job["out"]))
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps({"wall": time.perf_counter() - wall, "processor": spent, "peak": after.ru_maxrss * 1024})
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (parity, candidates, search, checkpoint, child):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        if run is parity:
            command.add_argument("--steps", type=int, default=3, help="of training, for each expert")
            command.add_argument("--every", type=int, default=5, help="compare every n-th layer")
        elif run is candidates:
            command.add_argument("--candidates", type=int, default=30)
            command.add_argument("--turns", type=int, default=3, help="candidates that mergekit makes too")
        elif run is search:
            command.add_argument("--candidates", type=int, default=30)
            command.add_argument("--pool", type=int, default=60, help="passages")
        elif run is checkpoint:
            command.add_argument("--layers", type=int, default=28)
            command.add_argument("--vocabulary", type=int, default=151936)
            command.add_argument("--methods", nargs="+", default=["linear", "task_arithmetic", "ties"])
            command.add_argument("--tools", nargs="+", default=["medley", "mergekit"])
        else:
            command.add_argument("job")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
