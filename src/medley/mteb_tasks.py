"""MTEB tasks and hub data sets as collections, and a collection as an MTEB task.

In: an MTEB retrieval task (`SciFact`), one of its subsets (`PublicHealthQA/english`), or a hub id in BEIR layout
(`mteb/scifact`: configurations corpus, queries, and default or qrels). Out: a collection whose passages stay on
disk, in the hub's cache.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medley.collections import Collection, Passage, in_memory
from medley.errors import CollectionError
from medley.progress import say

TIMEOUT_S = 10.0
"""How long the hub may take to answer whether a data set exists."""


def load_mteb_task(name: str, split: str) -> Collection:
    """Load a split of an MTEB retrieval task, of `Task/subset`, or of a hub data set in BEIR layout.

    Raises CollectionError, within seconds also without a network, when nothing has that name, it is no text
    retrieval task, it has no such split or subset, or it is neither reachable nor in the hub's cache.
    """
    import mteb

    task_name, _, subset = name.partition("/")
    task: Any
    try:
        task = mteb.get_task(task_name)
    except KeyError:
        if not subset:
            raise CollectionError(f"{name}: {_unknown(name)}") from None
        return _collection(
            name, split, _reading(name, name, None, lambda: _read_hub(name, None, split, None))
        )
    _check_task(task, name)
    subset = _subset(task, name, subset)
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    if type(task).load_data is _plain_load_data():
        # through the loader, which also knows the splits (train, dev) that the task is not evaluated on
        config = None if subset == "default" else subset
        data = _reading(name, path, revision, lambda: _read_hub(path, revision, split, config))
    else:
        if split not in task.metadata.eval_splits:
            raise CollectionError(
                f"{name}: no split {split!r}; it has: {', '.join(task.metadata.eval_splits)}."
            )
        data = _reading(name, path, revision, lambda: _read_task(task_name, split, subset))
    return replace(_collection(name, split, data), leaves_out_own=bool(task.ignore_identical_ids))


def _plain_load_data() -> Callable[..., None]:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    return AbsTaskRetrieval.load_data


def _unknown(name: str) -> str:
    import mteb

    known = [task.metadata.name for task in mteb.get_tasks(task_types=["Retrieval"])]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = (
        f"the nearest task names are {', '.join(near)}" if near else "give a BEIR folder, a task or a hub id"
    )
    return f"neither a collection folder nor an MTEB task; {hint}."


def _check_task(task: Any, name: str) -> None:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    kind = task.metadata.type
    if (
        not isinstance(task, AbsTaskRetrieval)
        or kind != "Retrieval"
        or list(task.metadata.modalities) != ["text"]
    ):
        raise CollectionError(
            f"{name}: is a {kind} task of MTEB, not text retrieval; choose a retrieval task."
        )
    if task.skip_first_result:
        raise CollectionError(
            f"{name}: MTEB leaves the first passage of each ranking out, whatever it is, which Medley does not do; "
            "choose another task."
        )


def _subset(task: Any, name: str, subset: str) -> str:
    subsets = list(task.hf_subsets)
    if subset and subset not in subsets:
        raise CollectionError(f"{name}: no subset {subset!r}; the task has: {', '.join(subsets)}.")
    if not subset and len(subsets) > 1:
        raise CollectionError(
            f"{name}: has {len(subsets)} subsets ({', '.join(subsets[:8])}); name one, as in {name}/{subsets[0]}."
        )
    return subset or subsets[0]


def _reading(name: str, path: str, revision: str | None, read: Callable[[], Any]) -> Any:
    """Read from the hub, after one quick question whether it is there: `datasets` itself retries for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if not constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.HfApi().dataset_info(path, revision=revision, timeout=TIMEOUT_S)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise CollectionError(
                f"{name}: the hub has no public data set {path!r}; check the name, or log in if it is private."
            ) from None
        except HfHubHTTPError as problem:
            raise CollectionError(
                f"{name}: the hub refused {path!r} ({_first_line(problem)}); try later."
            ) from problem
        except Exception as problem:  # the HTTP library's own errors, whichever it is (requests, httpx)
            raise CollectionError(
                f"{name}: the hub cannot be reached ({_first_line(problem)}); go online, set HF_HUB_OFFLINE=1 if "
                "it is in the hub's cache, or point at a folder in BEIR layout."
            ) from problem
    try:
        return read()
    except (OSError, ValueError, KeyError) as problem:
        raise CollectionError(
            f"{name}: {path!r} cannot be read as a retrieval set ({_first_line(problem)}); check name and split, "
            "or point at a folder in BEIR layout."
        ) from problem


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")


def _read_hub(path: str, revision: str | None, split: str, config: str | None) -> Any:
    from datasets import get_dataset_config_names, get_dataset_split_names
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    names = get_dataset_config_names(path, revision)
    judgements = f"{config}-qrels" if config else "default" if "default" in names else "qrels"
    splits = get_dataset_split_names(path, judgements, revision=revision)
    if (
        split not in splits
    ):  # the loader would take the only split there is, so that dev would silently be test
        raise ValueError(f"no split {split!r}; it has: {', '.join(splits)}")
    return RetrievalDatasetLoader(path, revision or "main", split=split, config=config).load()


def _read_task(task_name: str, split: str, subset: str) -> Any:
    import mteb

    task: Any = mteb.get_task(task_name, eval_splits=[split], hf_subsets=[subset])
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    return task.dataset[subset][split]


class HubCorpus(Sequence[Passage]):
    """The passages of a hub data set (memory-mapped by `datasets`), read on demand."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.ids: list[str] = [str(passage_id) for passage_id in rows["id"]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return _passage(self._rows[range(len(self))[index]])

    def __iter__(self) -> Iterator[Passage]:
        return map(_passage, self._rows)


def _passage(row: Mapping[str, Any]) -> Passage:
    return Passage(str(row["id"]), row.get("text") or "", row.get("title") or "")


def _collection(name: str, split: str, data: Any) -> Collection:
    corpus = HubCorpus(data["corpus"])
    queries = {str(row["id"]): row["text"] for row in data["queries"]}
    known = set(corpus.ids)
    judgements: dict[str, dict[str, int]] = {}
    dangling = 0
    for query_id, grades in data["relevant_docs"].items():
        kept = {str(p): int(grade) for p, grade in grades.items() if str(p) in known}
        if str(query_id) not in queries:
            kept = {}
        dangling += len(grades) - len(kept)
        if kept:
            judgements[str(query_id)] = kept
    if dangling:
        say(f"{name}:{split}: {dangling:,} judgements of queries or passages that are not there are left out")
    return replace(in_memory(name, split, corpus, queries, judgements), dangling=dangling)


def as_mteb_task(collection: Collection) -> Any:
    """A collection as a retrieval task that `mteb.evaluate` takes, to check one of Medley's numbers against MTEB's."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class LocalRetrieval(AbsTaskRetrieval):
        """One collection, in memory."""

        ignore_identical_ids = collection.leaves_out_own
        metadata = TaskMetadata(
            name="MedleyLocal", description="A local collection.", reference=None, type="Retrieval",
            category="t2t", modalities=["text"], eval_splits=[collection.split], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", dataset={"path": "local", "revision": collection.identity}, date=None,
            domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None,
            sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

    task = LocalRetrieval()
    task.dataset = {
        "default": {
            collection.split: {
                "corpus": Dataset.from_list(
                    [{"id": p.id, "title": p.title, "text": p.text} for p in collection.corpus]
                ),
                "queries": Dataset.from_list(
                    [{"id": q, "text": text} for q, text in collection.queries.items()]
                ),
                "relevant_docs": {query: dict(grades) for query, grades in collection.judgements.items()},
                "top_ranked": None,
            }
        }
    }
    task.data_loaded = True
    return task


def read_similarity_rows(name: str) -> list[tuple[str, str, float]]:
    """(sentence, sentence, people's score) of the test split of an STS task of MTEB.

    Raises CollectionError as `load_mteb_task` does.
    """
    import mteb
    from mteb.abstasks import AbsTaskSTS

    try:
        task: Any = mteb.get_task(name)
    except KeyError:
        raise CollectionError(f"{name}: {_unknown(name)}") from None
    if not isinstance(task, AbsTaskSTS):
        raise CollectionError(f"{name}: is a {task.metadata.type} task of MTEB, not sentence similarity.")
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]

    def read() -> list[tuple[str, str, float]]:
        task.load_data()
        data: Any = task.dataset
        rows = data["test"]
        first, second = tuple(task.column_names)[:2]
        return list(zip(rows[first], rows[second], rows["score"], strict=True))

    return _reading(name, path, revision, read)
