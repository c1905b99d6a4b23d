"""Templates: how the instruction and a text are joined, as a value that is saved inside the model folder.

A query reads `template.query_prefix(instruction) + text`; a passage reads `template.document + text`. Because both
are prefixes they are stored as sentence-transformers prompts named `query` and `document`, and every server that
honours these encodes exactly as Medley trained.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Template(BaseModel):
    """Prefixes for queries and passages; `{instruction}` in `query` stands for the task sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str
    document: str = ""
    query_without_instruction: str = ""

    def query_prefix(self, instruction: str) -> str:
        """What stands before a query's text; without an instruction its line goes away too."""
        if not instruction:
            return self.query_without_instruction
        return self.query.replace("{instruction}", instruction)


TEMPLATES = {
    # BMRetriever (arXiv 2404.18443); also STM (arXiv 2602.04731)
    "bmretriever": Template(
        query="{instruction}\nQuery: ",
        query_without_instruction="Query: ",
        document="Represent this passage\npassage: ",
    ),
    # E5-Mistral (arXiv 2401.00368)
    "e5": Template(query="Instruct: {instruction}\nQuery: ", query_without_instruction="Query: "),
    "plain": Template(query=""),
}
