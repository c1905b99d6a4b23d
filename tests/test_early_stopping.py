"""Early stopping: what dev likes best is kept, to the bit, whether training was interrupted or not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medley.encoder import RetrieverSettings, build_retriever, with_instruction
from medley.errors import DivergedError, InputError, ModelError
from medley.expert import read_expert
from medley.pairs import TrainingPair
from medley.train.adapter import remove_adapter
from medley.train.contrastive import train
from medley.train.settings import EarlyStopping, LoraSettings, TrainSettings
from medley.train.stopping import DevWatch, shrink, trainable_parameters, trainable_weights
from medley.train.trials import train_best
from small import medley, write_collection, write_recipe

PAIRS = [
    TrainingPair(f"query about fox {i}", f"the fox number {i} jumps", (f"the dog number {i} sleeps",))
    for i in range(8)
]


def opened(folder, **changes):
    settings = RetrieverSettings(dtype="float32", max_length=48)
    return build_retriever(str(folder), settings.model_copy(update=changes), instruction="Find", device="cpu")


def stopping(**changes) -> EarlyStopping:
    return EarlyStopping(**({"every_steps": 1, "patience": 2, "scales": ()} | changes))


def fast(**changes) -> TrainSettings:
    given = {"lora": LoraSettings(rank=4, alpha=8), "learning_rate": 1e-2, "batch_size": 8, "warmup": 0.0,
             "epochs": 6, "early_stopping": stopping()}  # fmt: skip
    return TrainSettings(**(given | changes))


class Scores:
    """A score function that gives the next of a list of scores, and remembers the weights it was asked about."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.weights: list[dict[str, torch.Tensor]] = []

    def __call__(self, retriever):
        self.weights.append(trainable_weights(retriever))
        return {
            "one": self.scores[len(self.weights) - 1] + 0.1,
            "two": self.scores[len(self.weights) - 1] - 0.1,
        }


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_step_is_kept_and_training_stops_when_patience_is_out(tiny_model_folder):
    model, scores = opened(tiny_model_folder), Scores(0.3, 0.5, 0.4, 0.5, 0.9)
    report = train(model, PAIRS, fast(), seed=3, score=scores)
    assert [(p.step, pytest.approx(p.score)) for p in report.dev.points] == [
        (0, 0.3),
        (1, 0.5),
        (2, 0.4),
        (3, 0.5),
    ]
    assert report.dev.chosen.step == 1 and report.dev.stopped_early, "of equal scores the earlier one"
    assert report.steps == 3 == len(report.losses)
    assert same(trainable_weights(model), scores.weights[1])
    assert report.dev.points[0].scores == {"one": pytest.approx(0.4), "two": pytest.approx(0.2)}


def test_an_expert_that_gains_nothing_stays_the_base_to_the_bit(tiny_model_folder, capsys):
    model = opened(tiny_model_folder)
    before = model.model.encode(["the fox"])
    report = train(model, PAIRS, fast(), seed=3, score=Scores(0.5, 0.4, 0.3))
    assert report.dev.chosen.step == 0
    assert (model.model.encode(["the fox"]) == before).all()
    assert "it stays the base" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, alpha=8), None])
def test_scoring_does_not_change_the_training(tiny_model_folder, lora):
    plain = opened(tiny_model_folder)
    without = train(plain, PAIRS, fast(early_stopping=None, lora=lora, batch_size=4), seed=3)
    watched = opened(tiny_model_folder)

    def rising(retriever):
        retriever.model.encode(["the fox", "the dog"])
        rising.score += 0.01
        return {"dev": rising.score}

    rising.score = 0.0
    report = train(watched, PAIRS, fast(lora=lora, batch_size=4), seed=3, score=rising)
    assert report.losses == without.losses and not report.dev.stopped_early
    assert same(trainable_weights(watched), trainable_weights(plain))


def test_shrunken_updates_are_scored_and_the_smallest_of_equals_is_kept(tiny_model_folder):
    model = opened(tiny_model_folder)
    before = {name: p.clone() for name, p in model.model[0].model.named_parameters()}
    settings = fast(epochs=2, early_stopping=stopping(scales=(0.5, 0.25)))
    scores = Scores(0.1, 0.3, 0.2, 0.2, 0.4, 0.4, 0.3)  # steps 0, 1, 2; step 1 at .25, .5; step 2 at .25, .5
    report = train(model, PAIRS, settings, seed=3, score=scores)
    assert [(p.step, p.scale) for p in report.dev.shrunken] == [(1, 0.25), (1, 0.5), (2, 0.25), (2, 0.5)]
    assert (report.dev.chosen.step, report.dev.chosen.scale) == (1, 0.5)
    full, half = scores.weights[1], trainable_weights(model)
    for name in full:
        if "lora_B" in name:
            delta = full[name] @ full[name.replace("lora_B", "lora_A")]
            shrunken = half[name] @ half[name.replace("lora_B", "lora_A")]
            assert torch.equal(shrunken, delta / 2) and delta.abs().max() > 0
    after = {n.replace(".base_layer", ""): p for n, p in model.model[0].model.named_parameters()}
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_full_weights_shrink_toward_the_base():
    start, trained = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    assert shrink(start, trained, 0.25)["w"].tolist() == [1.5, 1.0]


def test_a_resumed_training_forgets_what_lies_behind_its_checkpoint(tiny_model_folder, tmp_path):
    model, scores = opened(tiny_model_folder), Scores(0.3, 0.5, 0.4)
    watch = DevWatch(model, scores, stopping(), folder=tmp_path / "dev", label="train")
    watch.begin(0)
    watch.look(1)
    watch.look(2)
    for parameter in trainable_parameters(model).values():
        parameter.data.zero_()
    again = DevWatch(model, Scores(0.2, 0.1), stopping(), folder=tmp_path / "dev", label="train")
    again.begin(1)
    assert again.points == watch.points[:2]
    again.look(2)
    again.look(3)
    assert again.exhausted
    again.prune()
    assert sorted(path.name for path in (tmp_path / "dev").glob("step-*")) == [
        "step-0.safetensors", "step-1.safetensors", "step-3.safetensors",
    ]  # fmt: skip
    assert again.finish().chosen.step == 1
    assert same(trainable_weights(model), scores.weights[1])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("dies_at", [1, 7])
def test_a_killed_training_ends_as_if_it_had_never_stopped(tiny_model_folder, tmp_path, dies_at):
    """Killed while scoring the base, a step, or (7) a part of the update after the last step."""
    settings = fast(batch_size=4, epochs=3, checkpoint_minutes=0.0,
                    early_stopping=stopping(patience=9, scales=(0.5,)))  # fmt: skip

    def dev(retriever):
        vectors = retriever.model.encode(["fox 1", "the fox number 1 jumps", "the dog number 2 sleeps"])
        return {"dev": float(vectors[0] @ vectors[1] - vectors[0] @ vectors[2])}

    def dying(retriever):
        dying.calls += 1
        if dying.calls > dies_at:
            raise KilledError
        return dev(retriever)

    dying.calls = 0
    whole = opened(tiny_model_folder)
    first = train(whole, PAIRS, settings, seed=3, score=dev)
    with pytest.raises(KilledError):
        train(opened(tiny_model_folder), PAIRS, settings, seed=3, score=dying, checkpoints=tmp_path)
    again = opened(tiny_model_folder)
    second = train(again, PAIRS, settings, seed=3, score=dev, checkpoints=tmp_path)
    assert second.dev == first.dev and second.losses == first.losses and len(first.dev.points) == 7
    assert same(trainable_weights(again), trainable_weights(whole))


def test_scores_that_cannot_be_had_are_told_in_one_sentence(tiny_model_folder):
    def diverged(retriever):
        raise ModelError("dev: vectors are not finite")

    with pytest.raises(ModelError, match="dev cannot be scored with the base"):
        train(opened(tiny_model_folder), PAIRS, fast(), seed=3, score=diverged)
    with pytest.raises(InputError, match="needs a dev collection"):
        train(opened(tiny_model_folder), PAIRS, fast(), seed=3)


def test_a_run_stops_each_expert_on_its_own_dev(tiny_model_folder, tmp_path):
    data = write_collection(tmp_path / "data")
    given = {"every_steps": 1, "patience": 1, "scales": [0.5]}
    recipe = write_recipe(
        tmp_path / "r.yaml", tiny_model_folder, data,
        **{"train.early_stopping": given, "experts.a.dev": [f"{data}:train_b"], "train.epochs": 4},
    )  # fmt: skip
    assert medley("run", recipe, "--out", tmp_path / "refused").code == 2, "train_b is b's training data"
    recipe = write_recipe(
        tmp_path / "r.yaml", tiny_model_folder, data,
        **{"train.early_stopping": given, "experts.a.dev": [f"{data}:dev", f"{data}:dev"], "train.epochs": 4},
    )  # fmt: skip
    done = medley("run", recipe, "--out", tmp_path / "run", "--until", "train")
    assert done.code == 0, done.err
    training = json.loads((tmp_path / "run/stages/train/a/training.json").read_text())
    curve = training["dev"]
    assert [point["step"] for point in curve["points"]] == list(range(training["steps"] + 1))
    best = max(point["score"] for point in curve["points"] + curve["shrunken"])
    assert curve["chosen"]["score"] == best >= curve["points"][0]["score"]
    assert 0 < best <= 1 and set(curve["chosen"]["scores"]) == {"data:dev"}
    expert = read_expert(tmp_path / "run/stages/train/a/adapter")
    if curve["chosen"]["step"] == 0:
        assert all(not layer.up.any() for layer in expert.layers.values())
    summary = json.loads((tmp_path / "run/manifest.json").read_text())["stages"]["train"]["a"]["summary"]
    assert summary["dev"] == curve["chosen"]
    assert np.isfinite(training["losses"][-1]["loss"])


def test_one_base_serves_one_expert_after_another(tiny_model_folder):
    model = opened(tiny_model_folder)
    fresh, identity = model.model.encode(["the fox"]), model.identity()
    train(model, PAIRS, fast(early_stopping=None), seed=1)
    remove_adapter(model)
    assert (model.model.encode(["the fox"]) == fresh).all() and model.identity() == identity
    again = with_instruction(model, "Find")
    train(again, PAIRS, fast(early_stopping=None), seed=2)
    alone = opened(tiny_model_folder)
    train(alone, PAIRS, fast(early_stopping=None), seed=2)
    assert same(trainable_weights(again), trainable_weights(alone))
    assert with_instruction(again, "Other").model.prompts["query"].startswith("Other")


def test_trackers_pass_through(tiny_model_folder, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class Notebook(TrainerCallback):
        seen: list[tuple[str, float]] = []  # noqa: RUF012 (what a tracker far away would hold)

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.seen.append((args.run_name, logs["loss"]))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    settings = fast(early_stopping=None, epochs=2, report_to=["notebook"])
    report = train(opened(tiny_model_folder), PAIRS, settings, seed=3, label="train care")
    assert Notebook.seen == [("train care", entry["loss"]) for entry in report.losses]
    with pytest.raises(InputError, match="report_to: nothing cannot be reported to"):
        train(opened(tiny_model_folder), PAIRS, fast(report_to=["nothing"], early_stopping=None), seed=3)


def test_dev_chooses_the_learning_rate_and_finished_rates_are_not_trained_again(tiny_model_folder, tmp_path):
    rates = {1e-4: 0.3, 1e-3: 0.5, 1e-2: 0.5}
    made = []

    def scored(retriever):
        """The untouched base scores nothing; the largest weight of B, a step times the rate, says the rate."""
        largest = max(float(w.abs().max()) for n, w in trainable_weights(retriever).items() if "lora_B" in n)
        nearest = min(rates, key=lambda rate: abs(np.log10(rate) - np.log10(largest or 1e-9)))
        made.append(nearest)
        return {"dev": rates[nearest] if largest else 0.0}

    def save(folder, training):
        folder.mkdir(parents=True)
        (folder / "steps.txt").write_text(str(training.steps))

    settings = fast(max_steps=1, early_stopping=stopping(learning_rates=[1e-2, 1e-4, 1e-3]))
    model = opened(tiny_model_folder)
    given = {"folder": tmp_path, "seed": 3, "label": "train", "score": scored}
    best = train_best(model, PAIRS, settings, save, dev=["a"], **given)
    assert best.learning_rate == 1e-3, "of equals the lower one"
    assert best.report["tried"] == [{"learning_rate": r, "score": pytest.approx(s)} for r, s in rates.items()]
    assert (best.result / "steps.txt").read_text() == "1" and best.report["learning_rate"] == 1e-3
    calls = len(made)
    assert train_best(model, PAIRS, settings, save, dev=["a"], **given).report == best.report
    assert len(made) == calls
    train_best(model, PAIRS, settings, save, dev=["b"], **given)
    assert len(made) == 2 * calls, "another dev is another choice"
    with pytest.raises(InputError, match="with an adapter only"):
        train_best(model, PAIRS, settings.model_copy(update={"lora": None}), save, **given)


def test_a_score_that_is_no_number_ends_the_training(tiny_model_folder):
    with pytest.raises(DivergedError, match=r"after 2 steps dev cannot be scored .*no finite number"):
        train(
            opened(tiny_model_folder),
            PAIRS,
            fast(),
            seed=3,
            score=Scores(0.1, 0.2, float("nan")),
            label="train",
        )


def test_a_rate_that_diverges_loses_to_one_that_does_not(tiny_model_folder, tmp_path, capsys):
    model = opened(tiny_model_folder)
    fresh = model.identity()
    finished = []

    def save(folder, training):
        finished.append(folder)
        folder.mkdir(parents=True)

    def scored(retriever):
        return {"dev": 0.5}

    settings = fast(epochs=3, early_stopping=stopping(learning_rates=[1e-3, 1e30], patience=9))
    given = {"folder": tmp_path, "seed": 3, "label": "train care", "score": scored}
    best = train_best(model, PAIRS, settings, save, **given)
    assert best.learning_rate == 1e-3 and model.identity() == fresh
    assert best.report["tried"] == [
        {"learning_rate": 1e-3, "score": 0.5}, {"learning_rate": 1e30, "diverged": True},
    ]  # fmt: skip
    assert "train care at rate 1e+30: the loss is nan at step 2" in capsys.readouterr().err
    assert train_best(model, PAIRS, settings, save, **given).report == best.report
    assert len(finished) == 1, "neither is trained again"
    only = settings.model_copy(update={"early_stopping": stopping(learning_rates=[1e30, 1e31], patience=9)})
    with pytest.raises(DivergedError, match="at rate 1e\\+30: the loss is nan"):
        train_best(model, PAIRS, only, save, **given)
    assert model.identity() == fresh and len(finished) == 1
