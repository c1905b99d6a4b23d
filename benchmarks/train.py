"""Training speed: Medley against sentence-transformers, same base, rows, batch, steps and precision, in turns.

    python benchmarks/train.py                      # on a CPU: tiny, batch 256, one hard negative
    python benchmarks/train.py --base random-0.6b --dtype bfloat16 --steps 8      # on a GPU: Qwen3-0.6B's shape

Three ways to train one LoRA adapter on the same rows:
- medley: medley.train with its defaults;
- documented: the PEFT example of sentence-transformers' documentation as a user would copy it
  (MultipleNegativesRankingLoss, no duplicates in a batch);
- best: CachedMultipleNegativesRankingLoss with each of `--mini-batches` (texts) and `--token-budgets`; the fastest
  counts. One text a mini-batch pads nothing.

Rows are made of the demo's words with the lengths of the miniature (deciles below, counted in its training pairs).
Useful tokens are those of the rows, each text counted where it stands, without padding. Time is that of the whole call,
trainer and data included: wall-clock, or on a CPU with OMP_NUM_THREADS=1 processor time, which other processes on the
machine disturb less. `--memory` prints peak memory at some batch sizes instead.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medley.collections import BUNDLED, load_collection
from medley.encoder import Retriever, RetrieverSettings, build_retriever, token_ids
from medley.pairs import TrainingPair
from medley.train.contrastive import train
from medley.train.settings import LoraSettings, TrainSettings

QUERY_DECILES = (2, 6, 8, 10, 11, 14, 16, 20, 24, 33, 117)
PASSAGE_DECILES = (6, 21, 41, 103, 165, 221, 266, 307, 392, 512, 512)
"""Tokens of the miniature's 2,425 queries and positives under the tokenizer of `tiny`, prompts aside, cut at 512."""
INSTRUCTION = "Given a question, retrieve passages that answer the question"
TOKENS_PER_WORD = 1.35
RANDOM_SHAPES = {
    "random-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip


def made_pairs(count: int, seed: int) -> list[TrainingPair]:
    """Rows with one hard negative each; no text twice."""
    draw = random.Random(seed)
    corpus = load_collection(str(BUNDLED / "demo" / "medicine"), default_split="test").corpus
    words = [word for passage in corpus for word in passage.full_text.split()]

    def text(deciles: tuple[int, ...]) -> str:
        place = draw.random() * (len(deciles) - 1)
        low, high = deciles[int(place)], deciles[min(int(place) + 1, len(deciles) - 1)]
        tokens = low + (high - low) * (place - int(place))
        return " ".join(draw.choices(words, k=max(2, round(tokens / TOKENS_PER_WORD))))

    return [
        TrainingPair(text(QUERY_DECILES), text(PASSAGE_DECILES), (text(PASSAGE_DECILES),))
        for _ in range(count)
    ]


def clock() -> float:
    """Seconds: of this process on a CPU with one thread, else of the wall."""
    import torch

    return (
        time.process_time()
        if torch.get_num_threads() == 1 and not torch.cuda.is_available()
        else time.perf_counter()
    )


def fresh(arguments: argparse.Namespace) -> Retriever:
    """The base, opened anew."""
    settings = RetrieverSettings(dtype=arguments.dtype, max_length=arguments.max_length)
    return build_retriever(arguments.folder, settings, instruction=INSTRUCTION)


def by_medley(arguments: argparse.Namespace, pairs: list[TrainingPair], seen: dict[str, Any]) -> float:
    """Seconds of Medley's training."""
    retriever = fresh(arguments)
    settings = TrainSettings(
        lora=LoraSettings(rank=16, alpha=32), batch_size=arguments.batch_size, learning_rate=1e-4, warmup=0.0,
        temperature=0.05, activation_memory_gb=arguments.activation_memory_gb, bf16=arguments.bf16,
        mini_batch_size=arguments.mini_batch_size,
    )  # fmt: skip
    start = clock()
    training = train(retriever, pairs, settings, seed=1)
    seconds = clock() - start
    seen["medley"] = {
        "padding": training.padding, "losses": [round(entry["loss"], 4) for entry in training.losses]
    }  # fmt: skip
    return seconds


def by_sentence_transformers(
    arguments: argparse.Namespace, pairs: list[TrainingPair], name: str, make_loss: Callable[[Any], Any]
) -> float:
    """Seconds of sentence-transformers' training with a loss; see its documentation's training_gooaq_lora.py."""
    from datasets import Dataset
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers

    retriever = fresh(arguments)
    model = retriever.model
    start = clock()
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = parameter.data.float()
    dataset = Dataset.from_dict(
        {
            "question": [pair.query for pair in pairs],
            "answer": [pair.positive for pair in pairs],
            "negative": [pair.negatives[0] for pair in pairs],
        }
    )
    document = retriever.document_prompt
    with tempfile.TemporaryDirectory() as folder:
        training_arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=arguments.batch_size,
            learning_rate=1e-4, bf16=arguments.bf16, batch_sampler=BatchSamplers.NO_DUPLICATES,
            prompts={"question": retriever.query_prompt(), "answer": document, "negative": document},
            save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True, seed=1,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            model=model, args=training_arguments, train_dataset=dataset, loss=make_loss(model)
        )
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = clock() - start
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    print(f"{name}: losses {losses}", file=sys.stderr)
    return seconds


def ways(arguments: argparse.Namespace, pairs: list[TrainingPair], seen: dict[str, Any]) -> dict[str, Any]:
    """Every way to train, by name."""
    from sentence_transformers.sentence_transformer import losses

    found: dict[str, Callable[[], float]] = {"medley": lambda: by_medley(arguments, pairs, seen)}

    def rival(name: str, make_loss: Callable[[Any], Any]) -> None:
        found[name] = lambda: by_sentence_transformers(arguments, pairs, name, make_loss)

    if not arguments.no_documented:
        rival("documented", lambda model: losses.MultipleNegativesRankingLoss(model, scale=20.0))
    for size in arguments.mini_batches:
        rival(
            f"best: mini-batches of {size}",
            lambda model, size=size: losses.CachedMultipleNegativesRankingLoss(
                model, scale=20.0, mini_batch_size=size
            ),
        )
    for budget in arguments.token_budgets:
        rival(
            f"best: budget of {budget} tokens",
            lambda model, budget=budget: losses.CachedMultipleNegativesRankingLoss(
                model, scale=20.0, mini_batch_num_tokens=budget
            ),
        )
    return found


def useful_tokens(retriever: Retriever, pairs: list[TrainingPair]) -> int:
    """Tokens of the rows, prompts included."""
    texts = [retriever.query_prompt() + pair.query for pair in pairs]
    texts += [retriever.document_prompt + text for pair in pairs for text in (pair.positive, *pair.negatives)]
    return sum(map(len, token_ids(retriever, texts)[0]))


def compare(arguments: argparse.Namespace) -> None:
    """Run all ways in turns and print the table."""
    pairs = made_pairs(arguments.batch_size * arguments.steps, seed=13)
    tokens = useful_tokens(fresh(arguments), pairs)
    seen: dict[str, Any] = {}
    found = ways(arguments, pairs, seen)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(arguments.turns):
        for name, run in found.items():
            seconds[name].append(run())
            print(f"turn {turn + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    precision = f"{arguments.dtype}{', bf16 compute' if arguments.bf16 else ''}"
    print(
        f"{len(pairs)} rows, {tokens} useful tokens, batch {arguments.batch_size}, {arguments.steps} steps, "
        f"{arguments.base}, {precision}; {arguments.turns} turns\n"
    )
    print("| way | useful tokens/s, median | of each turn | medley is so many times faster |")
    print("|---|---:|---|---:|")
    for name, times in seconds.items():
        speeds = [tokens / second for second in times]
        ratio = statistics.median(other / own for other, own in zip(times, seconds["medley"], strict=True))
        each = ", ".join(f"{speed:,.0f}" for speed in speeds)
        print(f"| {name} | {statistics.median(speeds):,.0f} | {each} | {ratio:.2f} |")
    print(f"\nmedley: {100 * seen['medley']['padding']:.1f} % padding, losses {seen['medley']['losses']}")
    if arguments.peak_tflops:
        decoder = fresh(arguments).model[0].model
        layers = sum(p.numel() for n, p in decoder.named_parameters() if "embed" not in n)
        used = (
            4 * layers * tokens / statistics.median(seconds["medley"]) / 1e12
        )  # forward 2, backward by inputs 2
        print(f"model FLOPs utilisation (LoRA: 4 FLOPs a weight and token, attention aside): "
              f"{100 * used / arguments.peak_tflops:.0f} %")  # fmt: skip


def peak_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of one step at two batch sizes, each in a process of its own."""
    print("| batch | peak memory, MB | above the batch's texts and model, MB |\n|---:|---:|---:|")
    peaks = []
    for size in arguments.memory:
        command = [sys.executable, __file__, "--one-step", str(size), "--base", arguments.base, "--dtype",
                   arguments.dtype, "--activation-memory-gb", str(arguments.activation_memory_gb or 0.0),
                   "--max-length", str(arguments.max_length),
                   "--mini-batch-size", str(arguments.mini_batch_size)]  # fmt: skip
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks.append(found["peak"])
        print(
            f"| {size} | {found['peak'] / 1e6:,.0f} | {(found['peak'] - found['before']) / 1e6:,.0f} |",
            flush=True,
        )
    print(f"\nratio of the peaks: {peaks[-1] / peaks[0]:.3f}")


def one_step(arguments: argparse.Namespace) -> None:
    """One step of a batch; prints the peak memory of this process (or of the GPU) in bytes."""
    import torch

    arguments.batch_size = arguments.one_step
    pairs = made_pairs(arguments.one_step, seed=13)
    by_medley(arguments, pairs[:4], {})  # what is loaded and compiled at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    by_medley(arguments, pairs, {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        before, peak = 0, torch.cuda.max_memory_allocated()
    print(json.dumps({"before": before, "peak": peak}))


def make_random_base(name: str, folder: Path) -> str:
    """A decoder of a known shape with random weights and the tokenizer of `tiny`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    config = Qwen3Config(
        vocab_size=16384, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0, **RANDOM_SHAPES[name]
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED / "tiny").save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="tiny", help="a model, or random-0.6b")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the base's weights"
    )
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--mini-batch-size", type=int, default=32, help="of medley; the default is its own")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--mini-batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--token-budgets", type=int, nargs="*", default=[1024])
    parser.add_argument("--no-documented", action="store_true")
    parser.add_argument("--activation-memory-gb", type=float)
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the utilisation")
    parser.add_argument(
        "--memory", type=int, nargs="+", metavar="BATCH", help="print peak memory at these batch sizes"
    )
    parser.add_argument("--one-step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments.folder = arguments.base
        if arguments.base in RANDOM_SHAPES:
            arguments.folder = make_random_base(arguments.base, Path(scratch) / "base")
        if arguments.one_step:
            one_step(arguments)
        elif arguments.memory:
            peak_memory(arguments)
        else:
            compare(arguments)


if __name__ == "__main__":
    main()
