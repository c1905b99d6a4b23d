"""The error tree: every error that Medley raises on purpose, and the exit code that the command line gives it.

MedleyError                 exit code 1: something went wrong that is not the user's input
├── DemandError            the result is there, but it breaks a demand of the recipe
└── InputError              exit code 2: the user's input is wrong; the message says what, where and how to mend it
    ├── CollectionError     a corpus, queries or judgements file
    ├── PairsError          a training-pairs file
    ├── RecipeError         a recipe or merge file
    ├── ModelError          a base, expert or retriever
    │   ├── DivergedError   a training whose numbers are no longer finite
    │   └── VectorError     a text to which a model gives a vector that is not finite
    ├── EndpointError       a language-model endpoint that is down or refuses
    ├── LeakError           training text that recurs in a test collection
    └── OutputError         a folder or file that cannot be written (another run's folder, a full disk)
"""

from __future__ import annotations

import re

LONGEST = 1_000
"""Characters of a message that are shown."""


class MedleyError(Exception):
    """Any failure that Medley reports in one sentence.

    Its text is one line, whatever was quoted in it; of an endless one the middle is left out, since the place stands at
    its start and the remedy at its end.
    """

    exit_code = 1

    def __str__(self) -> str:
        said = re.sub(r"\s*[\r\n]\s*", " ", super().__str__())
        return said if len(said) <= LONGEST else f"{said[: LONGEST * 2 // 3]} [...] {said[-LONGEST // 4 :]}"


class DemandError(MedleyError):
    """The merged model does not keep to what the recipe demands of it."""


class InputError(MedleyError):
    """The user's input is wrong. The message is one sentence: what is wrong, where, how to mend it."""

    exit_code = 2


class CollectionError(InputError):
    """A collection is missing, malformed or inconsistent."""


class PairsError(InputError):
    """A training-pairs file is missing or malformed."""


class RecipeError(InputError):
    """A recipe or merge file has a wrong key, type or value."""


class ModelError(InputError):
    """A base, expert or retriever cannot be used as asked."""


class DivergedError(ModelError):
    """A training whose loss, gradient, weights or vectors are no longer finite numbers; other settings may mend it."""


class VectorError(ModelError):
    """A model gives a text a vector that is not made of finite numbers."""

    def __init__(self, message: str, text: str) -> None:
        """`text` is the first such text, as it was given: who knows its id can name it."""
        super().__init__(message)
        self.text = text


class EndpointError(InputError):
    """A language-model endpoint cannot be reached or refuses the request."""


class LeakError(InputError):
    """Training text recurs in a collection that the result is tested on."""


class OutputError(InputError):
    """A result cannot be written where it was asked to go."""
