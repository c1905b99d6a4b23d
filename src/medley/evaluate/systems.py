"""What stands in a table: BM25, a model, a served model, each alone or fused with BM25, whole or with small vectors.

In: a name and collections. Out: rankings, and exactly what was encoded. Names: `bm25`; a folder or hub id of a
retriever or expert; `URL#MODEL` for a server; `NAME+bm25` for reciprocal-rank fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.any_model import open_model
from medley.collections import Collection
from medley.errors import EndpointError, InputError
from medley.evaluate.access import Access, is_server
from medley.evaluate.endpoint import RefusedTextError, embedder_of_server, server_of
from medley.evaluate.scores import DEPTH, score_rankings
from medley.fingerprint import fingerprint
from medley.leaks.chosen import ChosenOn, read_chosen
from medley.model_name import model_identity
from medley.noticed import hand_on, noticing
from medley.search import Embedder, Rankings, embedder_of, fuse, rank_with_embedder
from medley.search.embedder import passage_vectors
from medley.template import TEMPLATES, Template

if TYPE_CHECKING:
    from medley.encoder import Retriever

FUSED = "+bm25"
EngineOf = Callable[[str, "Retriever"], Embedder]
"""Makes an embedder of a model's name and the model: in this process, or on others."""


@dataclass(frozen=True)
class Options:
    """How models are opened and asked, the same for every system of a table.

    `instruction` stands above `instructions` (collection name -> text, a suite's or recipe's), and those above the
    model's own. `template` is for models that have none, `base` for adapters. `store` keeps vectors.
    """

    instruction: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    base: str | None = None
    dtype: str | None = None
    device: str | None = None
    access: Mapping[str, Access] = field(default_factory=dict)
    store: Path | None = None


@dataclass(frozen=True)
class System:
    """A model that is open: its description and what makes its vectors. BM25 has no embedder."""

    name: str
    description: Mapping[str, Any]
    embedder: Embedder | None = None
    takes_instructions: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table: a system, alone or fused with BM25, with whole or small vectors."""

    base: str
    fused: bool = False
    compression: str | None = None

    @property
    def label(self) -> str:
        """Its name in tables and files."""
        name = self.base + (FUSED if self.fused else "")
        return f"{name} [{self.compression}]" if self.compression else name


def rows_of(names: Sequence[str], compressions: Sequence[str] = ()) -> list[Row]:
    """The rows that names stand for, each model also with small vectors; each once, in order.

    Raises InputError for BM25 fused with itself.
    """
    rows: dict[Row, None] = {}
    for name in names:
        base, fused = base_name(name), name.endswith(FUSED)
        if base == "bm25" and fused:
            raise InputError(f"{name}: BM25 cannot be fused with itself; name a model before +bm25.")
        rows[Row(base, fused)] = None
        for compression in compressions if base != "bm25" else ():
            rows[Row(base, fused, compression)] = None
    return list(rows)


def base_name(name: str) -> str:
    """A system's name without `+bm25`."""
    return name.removesuffix(FUSED)


def own_variant(system: str) -> str | None:
    """The run's own model that a system's name stands for, alone or fused; None for a foreign one."""
    base = base_name(system)
    return (
        base
        if base in ("merged", "base", "pretrained", "all", "bm25") or base.startswith("expert:")
        else None
    )


def identity_of(base: str, options: Options) -> str:
    """Fingerprint of a system by its name, without opening the model: what a result is kept under."""
    if base == "bm25":
        return "bm25"
    decides = options.access.get(base, Access()).decides
    inner = (
        fingerprint(["served", base, *([decides] if decides else [])])
        if is_server(base)
        else model_identity(base, options.base)
    )
    return fingerprint([inner, options.template, options.dtype])


def open_system(base: str, options: Options, engine: EngineOf | None = None) -> System:
    """Open what a name (without `+bm25`) stands for. Raises ModelError or EndpointError where there is none."""
    if base == "bm25":
        return System(base, {"name": base})
    template = None if options.template is None else _template(options.template)
    if is_server(base):
        server = server_of(base, options.access.get(base))
        embedder = embedder_of_server(server, template or TEMPLATES["plain"])
        description: dict[str, Any] = {"name": base, "identity": embedder.identity(), "served": True}
        return System(base, description, embedder, "{instruction}" in (template or TEMPLATES["plain"]).query)
    return system_of(base, opened(base, options), engine)


def system_of(name: str, retriever: Retriever, engine: EngineOf | None = None) -> System:
    """A retriever that is open, under a name."""
    description = {"name": name, "identity": retriever.identity(), "instruction": retriever.instruction}
    embedder = embedder_of(retriever) if engine is None else engine(name, retriever)
    return System(name, description, embedder, retriever.template is not None)


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise InputError(f"--template {name}: not known; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def opened(name: str, options: Options) -> Retriever:
    """Open what a name stands for; a model without a template takes the options'."""
    retriever = open_model(name, base=options.base, dtype=options.dtype, device=options.device)
    if retriever.template is None and options.template is not None:
        return replace(retriever, template=_template(options.template))
    return retriever


def instruction_used(system: System, collection: str, options: Options) -> str | None:
    """The instruction that is put in front of a collection's queries; None for the system's own or for none.

    One given for everything is refused by a model without a template; a suite's is for models that can take it.
    """
    if options.instruction is not None:
        return options.instruction
    return options.instructions.get(collection) if system.takes_instructions else None


def chosen_by(base: str) -> list[ChosenOn]:
    """What the model that a name (without `+bm25`) stands for was chosen on, as far as its folder says."""
    return [] if base == "bm25" or is_server(base) else read_chosen(Path(base).expanduser())


def evaluate_rows(
    system: System,
    rows: Sequence[Row],
    collection: Collection,
    options: Options,
    lexical: Callable[[], Rankings],
) -> dict[Row, dict[str, Any]]:
    """A task of results.json for each row of one system: scores, what was encoded, and how much of it was cut.

    Texts are encoded once.

    `lexical` gives BM25's rankings of the collection.
    """
    if system.embedder is None:
        return {row: score_rankings(collection, lexical()).as_json() for row in rows}
    instruction = instruction_used(system, collection.name, options)
    texts = encoded(system.embedder, collection, instruction)
    found = {}
    try:
        with noticing() as noticed:
            vectors_DH = passage_vectors(system.embedder, collection, options.store)
        for row in rows:
            with noticing() as of_queries:
                rankings: Rankings = rank_with_embedder(
                    system.embedder, collection, DEPTH, instruction=instruction, vectors_DH=vectors_DH,
                    compression=row.compression, store=options.store,
                )  # fmt: skip
            if row.fused:
                rankings = fuse([rankings, lexical()], DEPTH)
            scored = score_rankings(collection, rankings).as_json()
            found[row] = {**scored, "dimension": vectors_DH.shape[1], "encoded": texts,
                          "cut": of_queries.as_json() | noticed.as_json()}  # fmt: skip
    except RefusedTextError as problem:
        name = _name_of(problem.text, collection, texts["query_prompt"], texts["document_prompt"])
        raise EndpointError(
            f"{problem}; it is {name}: shorten it, or look at what the server allows (its longest text, its fields)."
        ) from problem
    hand_on(noticed, collection.name)
    hand_on(of_queries, collection.name)
    return found


def _name_of(text: str, collection: Collection, query_prompt: str, document_prompt: str) -> str:
    """What a text that was sent to a server is, by its id."""
    for passage in collection.corpus:
        if document_prompt + passage.full_text == text:
            return f"passage {passage.id!r} of {collection.name}"
    for query_id, query in collection.queries.items():
        if query_prompt + query == text:
            return f"query {query_id!r} of {collection.name}"
    return f"a text of {collection.name}"


def encoded(embedder: Embedder, collection: Collection, instruction: str | None) -> dict[str, str]:
    """The exact texts that went into the model: both prompts, the first query and the first passage."""
    query_prompt, document_prompt = embedder.query_prompt(instruction), embedder.document_prompt
    return {
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
        "first_query": query_prompt + next(iter(collection.queries.values())),
        "first_passage": document_prompt + collection.corpus[0].full_text,
    }
