"""Addresses of servers and the keys that go there: no secret in an address, none in what is shown, and no silence where
anybody on the way can read along.
"""

from __future__ import annotations

import ipaddress
import os
import re
from functools import cache
from urllib.parse import parse_qsl, quote, urlsplit

from medley.progress import say

_SECRET = re.compile(r"key|token|secret|password|passwd|signature|credential|auth", re.IGNORECASE)
TRACE = 6
"""So many characters of a key in a row are a part of it, and not shown."""


def check_address(url: str, name: str) -> None:
    """Refuse what is no http address, and one with a password or key, since run folders and reports hold addresses.

    Raises ValueError, which names the setting (`name`) and does not repeat the address.
    """
    try:
        address = urlsplit(url)
        whole = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        whole = False
    if not whole or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"`{name}` must be an address such as http://localhost:8000/v1")
    if "@" in address.netloc or any(
        _SECRET.search(key) for key, _ in parse_qsl(address.query, keep_blank_values=True)
    ):
        raise ValueError(
            f"`{name}` holds a password or key; put it into an environment variable and name that in `api_key_env`"
        )


def key_in(variable: str | None) -> str:
    """The key that an environment variable holds; "" where there is none."""
    return os.environ.get(variable, "").strip() if variable else ""


def without(key: str, text: str) -> str:
    """A text without the key, whole, in part or as addresses write it. Servers repeat what they refuse."""
    for secret in (key, quote(key, safe="")) if key else ():
        text = text.replace(secret, "***")
    kept, at = [], 0
    while at < len(text):
        end = at + TRACE
        while end <= len(text) and text[at:end] in key:
            end += 1
        found = end - 1 - at
        kept.append("***" if found >= TRACE else text[at])
        at += found if found >= TRACE else 1
    return "".join(kept)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def tell_plain(url: str, *, with_key: bool) -> None:
    """Say, once for each address, that what is sent to it can be read on the way."""
    address = urlsplit(url)
    if address.scheme == "http" and not is_loopback(address.hostname or ""):
        sent = "the texts and the key" if with_key else "the texts"
        say(
            f"{address.scheme}://{address.netloc}: {sent} go there unencrypted; use https where others can read along."
        )
