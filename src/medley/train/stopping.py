"""Early stopping on dev: a model is scored while it trains, and what scored best is what is kept.

Input: a function that scores the retriever as it stands, nDCG@10 by dev collection. Output: the curve (step, score),
and the model with the weights that dev approved of. Step 0, the untouched base, stands on the curve like any other
step: an expert that learns nothing of use stays the base. At the end the best and the last weights are also scored
with only a part of what they learnt (start + scale x (trained - start), as MediPhi shrinks each expert toward the
base before merging, arXiv 2505.10717): exact for LoRA, where it scales B.

Every scored step leaves its weights and its point in a folder. A resumed training reads the points up to the step
it resumes from, so it goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.encoder import Retriever
from medley.errors import DivergedError, MedleyError, ModelError
from medley.files import read_json, remove, write_json, writing
from medley.progress import say
from medley.train.processes import is_first, shared
from medley.train.settings import EarlyStopping

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

Score = Callable[[Retriever], Mapping[str, float]]
"""nDCG@10 of a retriever by dev collection; the mean over collections decides."""
POINTS = "points.json"


@dataclass(frozen=True)
class DevPoint:
    """A score on dev: after `step` steps, with `scale` of the update that these made."""

    step: int
    scale: float
    score: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DevCurve:
    """What dev said: a point for each scored step from 0 on, the shrunken updates, and which of all was kept."""

    points: tuple[DevPoint, ...]
    shrunken: tuple[DevPoint, ...]
    chosen: DevPoint
    stopped_early: bool

    @property
    def last_step(self) -> int:
        """The step after which training stopped."""
        return self.points[-1].step


class DevWatch:
    """Scores a retriever while it trains and keeps the weights of the best and the last scored step in a folder.

    In a training of several processes each one scores (none could train on meanwhile) and the first one's score
    counts, so that all stop at the same step; only the first writes files.
    """

    def __init__(
        self, retriever: Retriever, score: Score, settings: EarlyStopping, *, folder: Path, label: str
    ) -> None:
        self.points: list[DevPoint] = []
        self._retriever, self._score, self._settings = retriever, score, settings
        self._folder, self._label = folder, label

    @property
    def best(self) -> DevPoint:
        """The best scored step; of equals the earliest."""
        return max(self.points, key=lambda point: point.score)

    @property
    def exhausted(self) -> bool:
        """Whether `patience` scores in a row brought no gain."""
        return len(self.points) - 1 - self.points.index(self.best) >= self._settings.patience

    def begin(self, step: int) -> None:
        """Score the base at step 0; when training resumes at a later step, read the points up to it."""
        if step == 0:
            self.points = []
            self.look(0)
            return
        known = [DevPoint(**point) for point in shared(lambda: read_json(self._folder / POINTS, ModelError))]
        self.points = [point for point in known if point.step <= step]

    def look(self, step: int) -> None:
        """Score the retriever after `step` steps and keep its weights."""
        if is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_weights(self._file(step), trainable_weights(self._retriever))
        self.points.append(self._scored(step, 1.0))
        if is_first():
            write_json(self._folder / POINTS, [asdict(point) for point in self.points])

    def prune(self) -> None:
        """Remove weights that are neither the start's, the best nor the last; call once nothing can resume earlier."""
        if is_first():
            kept = {self._file(step).name for step in (0, self.best.step, self.points[-1].step)}
            for path in self._folder.glob("step-*.safetensors"):
                if path.name not in kept:
                    remove(path)

    def finish(self) -> DevCurve:
        """Score the shrunken updates and put what dev likes best into the model; of equals the smallest change."""
        shrunken = []
        for step in sorted({self.best.step, self.points[-1].step} - {0}):
            for scale in sorted(self._settings.scales):
                self._put(step, scale)
                shrunken.append(self._scored(step, scale))
        candidates = sorted([*self.points, *shrunken], key=lambda point: (point.step, point.scale))
        chosen = max(candidates, key=lambda point: point.score)
        self._put(chosen.step, chosen.scale)
        curve = DevCurve(tuple(self.points), tuple(shrunken), chosen, self.exhausted)
        if is_first():
            say(f"{self._label}: {_in_words(curve)}")
        return curve

    def _scored(self, step: int, scale: float) -> DevPoint:
        try:
            scores = shared(lambda: dict(self._score(self._retriever)), everywhere=True)
            if not all(map(math.isfinite, scores.values())):
                raise ModelError(f"a score is no finite number: {scores}")
        except MedleyError as problem:
            if step == 0:
                raise ModelError(
                    f"{self._label}: dev cannot be scored with the base, before any step ({problem})."
                ) from problem
            raise DivergedError(
                f"{self._label}: after {step} steps dev cannot be scored ({problem}); lower the learning rate. "
                "Nothing was saved."
            ) from problem
        return DevPoint(step, scale, sum(scores.values()) / len(scores), scores)

    def _put(self, step: int, scale: float) -> None:
        """Put `scale` of the update made by a step into the model, in every process."""
        import torch
        import torch.distributed as dist

        parameters = trainable_parameters(self._retriever)
        if is_first():
            weights = _read_weights(self._file(step))
            if scale != 1.0:
                weights = shrink(_read_weights(self._file(0)), weights, scale)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])
        if dist.is_initialized():
            for parameter in parameters.values():
                dist.broadcast(parameter.data, src=0)

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step}.safetensors"


def watching(watch: DevWatch, every_steps: int) -> TrainerCallback:
    """The watch as a callback of transformers' Trainer: it looks every so many steps and after the last."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.begin(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if not watch.exhausted and (step % every_steps == 0 or step >= state.max_steps):
                watch.look(step)
                if args.save_strategy == "no":
                    watch.prune()
            if watch.exhausted:  # also where a resumed training finds that it had stopped already
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.prune()

    return Watching()


def steps_between(settings: EarlyStopping, steps_per_epoch: int) -> int:
    """How many steps lie between two scores."""
    return settings.every_steps or max(1, round(settings.every_epochs * steps_per_epoch))


def trainable_parameters(retriever: Retriever) -> dict[str, torch.nn.Parameter]:
    """What training changes: the adapter's weights, or all."""
    return {name: p for name, p in retriever.model.named_parameters() if p.requires_grad}


def trainable_weights(retriever: Retriever) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in trainable_parameters(retriever).items()}


def shrink(
    start: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """Weights with `scale` of the update from `start` to `trained`.

    An adapter's update is B A, so there B alone is scaled; other weights are interpolated in float32.
    """
    shrunken = {}
    for name, weights in trained.items():
        if ".lora_B." in name:
            shrunken[name] = weights * scale
        elif ".lora_A." in name:
            shrunken[name] = weights
        else:
            first = start[name].float()
            shrunken[name] = (first + scale * (weights.float() - first)).to(weights.dtype)
    return shrunken


def _write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    with writing(path) as temporary:
        save_file(dict(weights), temporary)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path}: the weights of that step are gone; remove the folder and train again.")
    return load_file(path)


def _in_words(curve: DevCurve) -> str:
    base, chosen = curve.points[0], curve.chosen
    if chosen.step == 0:
        return (
            f"no step of {curve.last_step} is better on dev than the base (nDCG@10 {base.score:.4f}), "
            "so it stays the base"
        )
    part = "" if chosen.scale == 1.0 else f", {chosen.scale:g} of its update"
    return (
        f"dev nDCG@10 {base.score:.4f} -> {chosen.score:.4f} at step {chosen.step} of {curve.last_step}{part}"
    )
