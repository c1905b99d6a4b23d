"""Fields that a user adds to requests because a server wants them: `extra_body` in recipes, KEY=JSON as options."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from medley.errors import InputError

_SECRET = re.compile(r"api.?key|secret|passw|authorization|access.?token|credential", re.IGNORECASE)


def check_extra_body(extra: Mapping[str, JsonValue], said_elsewhere: Mapping[str, str | None]) -> None:
    """Refuse fields that Medley fills in itself (`said_elsewhere`, with the setting that says them, if there is one),
    and keys, since run folders hold the fields. Raises ValueError.
    """
    for name in extra:
        if name in said_elsewhere:
            place = said_elsewhere[name]
            raise ValueError(
                f"`extra_body`: {name} is "
                + (f"said by {place}" if place else "Medley's own")
                + "; take it out"
            )
    if secret := _SECRET.search(json.dumps(extra)):
        raise ValueError(
            f"`extra_body` seems to hold a key ({secret[0]!r}); put it into an environment variable and name that in "
            "`api_key_env`"
        )


def extra_from_options(given: Sequence[str], option: str) -> dict[str, JsonValue]:
    """`KEY=JSON` options as fields; what is no JSON is taken as text. Raises InputError for one without a key."""
    extra: dict[str, JsonValue] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise InputError(f"{option} {text}: is not KEY=JSON; write, for example, enable_thinking=false.")
        try:
            extra[name.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            extra[name.strip()] = value
    return extra
