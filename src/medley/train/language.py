"""Language-model training of a domain base: raw text in, an adapter or full weights out.

The loss is that of the next token, so what comes out is no retriever, but what a retriever can be merged with segment
by segment to learn a domain without labels. Texts are tokenized once into a file, one after another with an end
token between them, and cut into blocks of equal length: no padding, and memory does not depend on their number.
The loop is transformers' Trainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.backbone import backbone_fingerprint
from medley.documents import Shard
from medley.encoder import DESCRIPTION, FORMAT
from medley.errors import ModelError, PairsError
from medley.expert import adapter_content, write_adapter
from medley.files import explained_write_errors, read_json, remove, write_json, writing
from medley.fingerprint import fingerprint, fingerprint_texts
from medley.finite import is_finite
from medley.loading import check_vocabulary, opening, quiet_loading
from medley.model_name import check_decoder, model_identity, resolve_base
from medley.progress import progress, say
from medley.train.blocks import Blocks, held_out_blocks, token_file
from medley.train.processes import is_first, join, shared
from medley.train.settings import LanguageSettings
from medley.train.trainer import (
    advancing,
    checkpoint_folder,
    diverged,
    saving_every,
    stopping_where_not_finite,
    trackers,
)

if TYPE_CHECKING:
    import torch

IDENTITY, TOKENS = "identity.json", "tokens.bin"
COSTS_NOTHING = {"report_to", "checkpoint_minutes"}
"""Settings that may change between a kill and the resume."""


@dataclass(frozen=True)
class LanguageTraining:
    """What a language-model training reports.

    Tokens of the text; steps; the mean loss (nats a token) on held-out blocks before and after, None without any;
    the loss after each step; wall-clock time.
    """

    tokens: int
    steps: int
    loss_before: float | None
    loss_after: float | None
    losses: list[dict[str, float]]
    seconds: float


def train_language(
    base: str,
    shards: Sequence[Shard],
    settings: LanguageSettings,
    out: Path,
    *,
    seed: int,
    label: str = "language",
    checkpoints: Path | None = None,
) -> LanguageTraining:
    """Train a base on raw text and write the result to the folder `out`: a PEFT adapter, or a checkpoint.

    With `checkpoints`, a training that was killed goes on from its last checkpoint there; the folder is removed at the
    end. Raises ModelError for a base that is no decoder, PairsError where there is not enough text for two blocks,
    DivergedError at the first loss or gradient that is not a finite number.
    """
    import torch
    import transformers
    from torch.utils.data import Subset

    join()
    check_decoder(base)
    torch.manual_seed(seed)
    started = time.monotonic()
    with checkpoint_folder(checkpoints) as folder, quiet_loading():
        with opening(base, "a language model"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                resolve_base(base), trust_remote_code=False
            )
        folder = Path(shared(lambda: str(folder)))
        identity = shared(lambda: _prepared(folder, base, shards, settings, seed=seed))
        shared(lambda: len(token_file(tokenizer, shards, folder / TOKENS)))
        tokens = token_file(tokenizer, shards, folder / TOKENS)
        blocks = Blocks(tokens, settings.block_tokens)
        if len(blocks) < 2:
            raise PairsError(
                f"{label}: {len(tokens)} tokens of text are fewer than two blocks of {settings.block_tokens}; "
                "give more text, or shorter blocks."
            )
        held_out = held_out_blocks(len(blocks), settings.held_out, seed)
        kept = [index for index in range(len(blocks)) if index not in held_out]
        model, base_identity = _opened(base, settings)
        check_vocabulary(model, tokenizer, base)
        batch_size = min(settings.batch_size, len(kept))
        steps = settings.max_steps or math.ceil(settings.epochs * math.ceil(len(kept) / batch_size))
        arguments = _arguments(settings, folder, batch_size=batch_size, steps=steps, seed=seed, label=label)
        rows: Any = blocks
        with progress(label, steps) as advance:
            trainer = transformers.Trainer(
                model=model,
                args=arguments,
                train_dataset=Subset(rows, kept),
                eval_dataset=Subset(rows, sorted(held_out)) if held_out else None,
                callbacks=[
                    advancing(advance),
                    stopping_where_not_finite(label, dtype=str(model.dtype).removeprefix("torch.")),
                ],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            resumed = None
            if checkpoints:
                trainer.add_callback(saving_every(settings.checkpoint_minutes))
                resumed = _last_checkpoint(checkpoints)
                if resumed:
                    say(f"{label}: continues from step {resumed.name.rpartition('-')[2]} of {steps}")
            # Not trainer.evaluate() here: accelerate then takes the model for prepared and leaves it without DDP, and
            # each process trains a model of its own. The history of a training that resumes holds the first score.
            arguments.eval_on_start = bool(held_out) and resumed is None
            outcome = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            after = float(trainer.evaluate()["eval_loss"]) if held_out else None
            _check_trained(model, blocks[kept[0]], label, step=outcome.global_step)
        if is_first():
            description = {
                "format": FORMAT, "kind": "language", "base": base, "base_identity": base_identity,
                "training": {"tokens": len(tokens), "steps": outcome.global_step, "identity": identity},
            }  # fmt: skip
            _save(model, tokenizer, settings, out, description)
            if checkpoints:
                remove(checkpoints)
    history = trainer.state.log_history
    before = next((float(entry["eval_loss"]) for entry in history if "eval_loss" in entry), None)
    losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in history if "loss" in entry]
    return LanguageTraining(
        len(tokens), outcome.global_step, before, after, losses, round(time.monotonic() - started, 3)
    )


def _arguments(
    settings: LanguageSettings, folder: Path, *, batch_size: int, steps: int, seed: int, label: str
) -> Any:
    """The trainer's arguments: a step has at least `batch_size` blocks, over all devices."""
    import torch
    import torch.distributed as dist
    import transformers

    world = dist.get_world_size() if dist.is_initialized() else 1
    per_device = max(1, min(settings.mini_batch_size, batch_size // world))
    return transformers.TrainingArguments(
        output_dir=str(folder),
        run_name=label,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=settings.mini_batch_size,
        gradient_accumulation_steps=math.ceil(batch_size / (per_device * world)),
        gradient_checkpointing=settings.gradient_checkpointing,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        bf16=settings.lora is None and settings.dtype == "bfloat16" and torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=2,
        report_to=trackers(settings.report_to),
        logging_nan_inf_filter=False,  # it would log 0.0 for a loss that is not a number
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _opened(base: str, settings: LanguageSettings) -> tuple[Any, str]:
    """The base with its head, with a fresh adapter or all weights trainable, and its fingerprint.

    Under an adapter the base stays in `settings.dtype`; full weights train in float32.
    """
    import torch
    import transformers

    dtype = getattr(torch, settings.dtype) if settings.lora else torch.float32
    with opening(base, "a language model"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            resolve_base(base), dtype=dtype, trust_remote_code=False
        )
    identity = backbone_fingerprint(model.base_model)
    model.config.use_cache = False
    if settings.lora is None:
        return model, identity
    import peft

    lora = settings.lora
    given = {
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": lora.targets,
        "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    return peft.get_peft_model(model, peft.LoraConfig(**(given | lora.options))), identity


def _check_trained(model: Any, block: Mapping[str, torch.Tensor], label: str, *, step: int) -> None:
    """Look at what the last step made of the weights, which has been through no loss. Raises DivergedError."""
    import torch

    with torch.no_grad():
        loss = model(**{name: values[None].to(model.device) for name, values in block.items()}).loss
    if not (is_finite(loss) and all(is_finite(p) for p in model.parameters() if p.requires_grad)):
        dtype = str(model.dtype).removeprefix("torch.")
        raise diverged(label, "the trained weights give no finite loss", step=step, dtype=dtype)


def _save(
    model: Any, tokenizer: Any, settings: LanguageSettings, out: Path, description: dict[str, Any]
) -> None:
    import torch

    if settings.lora is not None:
        tensors, config = adapter_content(model)
        write_adapter(
            out, tensors, config=config | {"base_model_name_or_path": description["base"]}, description=description
        )  # fmt: skip
        return
    with writing(out) as temporary, explained_write_errors(out):
        model.config.use_cache = True
        model.to(getattr(torch, settings.dtype)).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / DESCRIPTION, description)


def _prepared(
    folder: Path, base: str, shards: Sequence[Shard], settings: LanguageSettings, *, seed: int
) -> str:
    """Make the folder ready for this very training: what another one left there goes away."""
    names = [
        [shard.name, shard.stat().st_size]
        if isinstance(shard, Path)
        else fingerprint_texts(passage.full_text for passage in shard)
        for shard in shards
    ]
    identity = fingerprint(
        [model_identity(base), names, settings.model_dump(mode="json", exclude=COSTS_NOTHING), seed]
    )
    known = folder / IDENTITY
    if not known.is_file() or read_json(known, ModelError)["identity"] != identity:
        if known.is_file():
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, {"identity": identity})
    return identity


def _last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; its trainer_state.json comes last."""
    found = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            read_json(path, ModelError)
        except ModelError:
            continue
        found.append(path.parent)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
