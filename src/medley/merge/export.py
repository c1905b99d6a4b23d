"""Gated export: a saved model must give the vectors that were scored, in a process that never imports Medley.

The retriever is saved beside its target under a temporary name. A fresh Python process opens that folder with
plain sentence-transformers in float32 and encodes probe texts with `encode_query` and `encode_document`,
hence with the prompts in the folder. Only if these vectors equal the ones scored in memory, differ from the
base's, and the prompts are the same, the folder gets its name; otherwise nothing is left.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medley.encoder import Retriever, encode_passages, encode_queries, save_retriever
from medley.errors import InputError, ModelError
from medley.files import explained_write_errors, writing
from medley.finite import check_finite
from medley.lowrank import attached
from medley.markdown import literal

SAME = 0.9999
"""Least cosine between a probe's vector as scored and as the saved folder gives it."""
DIFFERENT = 1e-5
"""Least distance (1 - cosine) of the most different probe from the base."""
LOST = 0.1
"""Most that rounding may move a probe, as a share of what the merge moves it: less than that, the merge survives."""
PROBE_QUERIES = (
    "What is the first treatment of type 2 diabetes in adults?",
    "Does vitamin D lower the risk of fractures?",
    "How is a stroke told from a migraine with aura?",
    "side effects of beta blockers in asthma",
)
PROBE_PASSAGES = (
    "Metformin lowers glucose production in the liver and is the first drug for most adults with diabetes.",
    "Trials of vitamin D alone showed no fewer hip fractures in people who live at home.",
    "The city council voted to extend the tram line to the harbour by the end of next year.",
    "A sudden weakness of one side of the body needs imaging of the brain without delay.",
)

READER = """
import json, sys, torch
import numpy as np
torch.set_num_threads(int(sys.argv[3]))
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": torch.float32})
probe = json.load(open(sys.argv[2] + "/probe.json", encoding="utf-8"))
for name, encode in (("queries", model.encode_query), ("passages", model.encode_document)):
    vectors = encode(probe[name], convert_to_numpy=True, show_progress_bar=False)
    np.save(sys.argv[2] + "/" + name + ".npy", vectors)
assert not any(name.split(".")[0] == "medley" for name in sys.modules)
json.dump(dict(model.prompts), open(sys.argv[2] + "/prompts.json", "w", encoding="utf-8"))
"""


@dataclass(frozen=True)
class Probe:
    """Texts that the gate encodes."""

    queries: tuple[str, ...] = PROBE_QUERIES
    passages: tuple[str, ...] = PROBE_PASSAGES


@dataclass(frozen=True)
class ProbeVectors:
    """A probe's vectors: `queries` (Q, H) and `passages` (D, H), float32."""

    queries: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class GateReport:
    """What the gate measured over all probe texts."""

    min_cosine_to_scored: float
    min_cosine_to_base: float
    prompts: Mapping[str, str]
    weights_dtype: str


def encode_probe(retriever: Retriever, probe: Probe) -> ProbeVectors:
    """The probe's vectors as Medley computes them; open the retriever in float32 for an exact gate."""
    return ProbeVectors(encode_queries(retriever, probe.queries), encode_passages(retriever, probe.passages))


def export(
    retriever: Retriever,
    folder: Path,
    *,
    card: str,
    scored: ProbeVectors,
    base: ProbeVectors | None,
    probe: Probe | None = None,
    extra: Mapping[str, Any] | None = None,
) -> GateReport:
    """Save a retriever, gated.

    `scored` are the probe's vectors of the model whose dev scores were read (deltas attached, float32),
    `base` those of the untouched base; None where there is none to differ from. The weights are saved in the
    dtype they have. Raises ModelError, and leaves what was at `folder`, when a weight is not a finite number (in
    float16 one may be too large) or the saved folder does not encode as scored.
    """
    probe = probe or Probe()
    if attached(retriever):
        raise ModelError(
            f"{folder}: the retriever carries an attached adapter; fold it into the weights before saving."
        )
    check_finite(retriever.model.named_parameters(), f"{folder}: as merged")
    with writing(folder) as temporary:
        save_retriever(retriever, temporary, card=card, extra=dict(extra or {}))
        reread, prompts = reread_in_fresh_process(temporary, probe, name=str(folder))
        report = judge(reread, prompts, retriever, scored=scored, base=base, name=str(folder))
    return report


def judge(
    reread: ProbeVectors,
    prompts: Mapping[str, str],
    retriever: Retriever,
    *,
    scored: ProbeVectors,
    base: ProbeVectors | None,
    name: str,
) -> GateReport:
    """Compare what a saved folder gives with what was scored. Raises ModelError naming what differs."""
    expected = {"query": retriever.query_prompt(), "document": retriever.document_prompt}
    for key, prompt in expected.items():
        if prompts.get(key, "") != prompt:
            raise ModelError(
                f"{name}: the saved {key} prompt is {prompts.get(key, '')!r}, but {prompt!r} was scored."
            )
    to_scored = min_cosine(reread, scored)
    dtype = str(next(iter(retriever.model.parameters())).dtype).removeprefix("torch.")
    if not to_scored > SAME:
        remedy = "; save it with dtype float32" if dtype != "float32" else ""
        raise ModelError(
            f"{name}: the saved model ({dtype}) does not give the vectors that were scored "
            f"(cosine {to_scored:.6f}, needed {SAME}){remedy}."
        )
    moved = 1.0 if base is None else 1.0 - min_cosine(scored, base)
    if 1.0 - to_scored > LOST * moved >= LOST * DIFFERENT:
        raise ModelError(
            f"{name}: rounding to {dtype} moves vectors by {1.0 - to_scored:.1e}, which is much beside the "
            f"{moved:.1e} by which the merge moves them; save it with dtype float32."
        )
    to_base = 1.0 if base is None else min_cosine(reread, base)
    if base is not None and 1.0 - to_base < DIFFERENT:
        raise ModelError(
            f"{name}: the merged model gives the base's vectors, so nothing was merged; "
            "check the weights and that the experts were trained."
        )
    return GateReport(to_scored, to_base, prompts, dtype)


def reread_in_fresh_process(folder: Path, probe: Probe, *, name: str) -> tuple[ProbeVectors, dict[str, str]]:
    """Encode the probe with plain sentence-transformers in a process of its own; vectors and the folder's
    prompts."""
    import torch

    # in the unfinished folder itself, so that what removes that after a kill removes the probe's texts, too
    with (
        tempfile.TemporaryDirectory(prefix=".gate-", dir=folder.resolve()) as work,
        explained_write_errors(folder),
    ):
        (Path(work) / "probe.json").write_text(json.dumps(asdict(probe)), encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, "-c", READER, str(folder.resolve()), work, str(torch.get_num_threads())],
            capture_output=True, text=True, check=False, cwd=work,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        if finished.returncode != 0:
            reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"{name}: plain sentence-transformers cannot open the saved model ({reason}).")
        vectors = ProbeVectors(np.load(Path(work) / "queries.npy"), np.load(Path(work) / "passages.npy"))
        prompts = json.loads((Path(work) / "prompts.json").read_text(encoding="utf-8"))
    return vectors, prompts


def min_cosine(left: ProbeVectors, right: ProbeVectors) -> float:
    """The least cosine between corresponding vectors; nan where a vector is not finite."""
    least = []
    for a_NH, b_NH in ((left.queries, right.queries), (left.passages, right.passages)):
        a_NH, b_NH = a_NH.astype(np.float64), b_NH.astype(np.float64)
        lengths_N = np.linalg.norm(a_NH, axis=1) * np.linalg.norm(b_NH, axis=1)
        least.append((a_NH * b_NH).sum(axis=1) / lengths_N)
    return float(np.min(np.concatenate(least)))


def model_card(
    title: str,
    *,
    base: str,
    method: str,
    experts: Mapping[str, str],
    weights: Mapping[str, Any],
    details: Mapping[str, Any],
    licences: Mapping[str, str] | None = None,
) -> str:
    """README.md of a merged model: what it was made of, and how to use it.

    `experts` gives each one's fingerprint; `licences` those that the base (under the name `base`) and the experts
    state. One that all of them state is the result's; otherwise the reader is told to read them.
    """
    import yaml

    stated = {name: " ".join(licence.split()) for name, licence in (licences or {}).items()}
    rows = [
        f"| {literal(name)} | {literal(_number(weights.get(name, '')))} | `{identity}` | "
        f"{literal(stated.get(name, 'not stated'))} |"
        for name, identity in experts.items()
    ]
    facts = [f"- {literal(key)}: {literal(str(value))}" for key, value in details.items()]
    common = set(stated.values()) if {"base", *experts} <= set(stated) else set()
    front = {"license": common.pop()} if len(common) == 1 else {}
    licence = [yaml.safe_dump(front, allow_unicode=True, width=math.inf).rstrip()] if front else []
    return "\n".join(
        [
            "---", *licence, "library_name: sentence-transformers", "pipeline_tag: sentence-similarity",
            "tags: [sentence-transformers, feature-extraction, merge, medley]", "---", "",
            f"# {literal(title)}", "",
            f"A retriever merged by Medley ({literal(method)}) from {len(experts)} expert(s) on {literal(base)} "
            f"(licence: {literal(stated.get('base', 'not stated'))}).", "",
            *([] if licence else ["Mind the licences of the parts: they all hold for the whole.", ""]),
            "| expert | weight | fingerprint | licence |", "|---|---|---|---|", *rows, "", *facts, "",
            "```python", "from sentence_transformers import SentenceTransformer", "",
            'model = SentenceTransformer("path/to/this/folder")',
            'queries = model.encode_query(["..."])  # the instruction is in the saved prompt',
            'passages = model.encode_document(["..."])', "```", "",
        ]
    )  # fmt: skip


def licences(folders: Mapping[str, Path]) -> dict[str, str]:
    """The licence that each folder's model card states in its front matter, by name; silent ones are left out."""
    from medley.yaml_file import parse_yaml

    found = {}
    for name, folder in folders.items():
        path = folder / "README.md"
        if not path.is_file():
            continue
        parts = re.split(r"(?m)^---\n", path.read_text(encoding="utf-8", errors="replace"), maxsplit=2)
        try:
            front = parse_yaml(parts[1], str(path)) if len(parts) == 3 and not parts[0].strip() else None
        except InputError:
            front = None  # a broken card states nothing
        if isinstance(front, dict) and front.get("license"):
            found[name] = str(front["license"])
    return found


def _number(weight: Any) -> str:
    """A weight in a table's cell: a number, one a segment, or by kind of tensor."""
    if isinstance(weight, Mapping):
        return "; ".join(f"{kind} {_number(value)}" for kind, value in weight.items())
    values = list(weight) if isinstance(weight, (list, tuple)) else [weight]
    return ", ".join(value if isinstance(value, str) else f"{value:.4g}" for value in values)
