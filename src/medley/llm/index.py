"""Where each recorded reply stands in its file: 64-bit keys to offsets, in two flat arrays.

Open addressing with linear probing: at most 48 bytes an entry, where a dict of Python integers takes 130.
"""

from __future__ import annotations

from array import array

_FULL = 2 / 3


class OffsetIndex:
    """A map from keys (1 to 2^64 - 1) to offsets in a file (0 and up)."""

    def __init__(self) -> None:
        self._count = 0
        self._make(1 << 10)

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._keys = array("Q", bytes(8 * size))
        self._offsets = array("Q", bytes(8 * size))

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return 16 * len(self._keys)

    def get(self, key: int) -> int | None:
        """The offset of a key; None for one that is not there."""
        slot = self._slot(key)
        return self._offsets[slot] if self._keys[slot] else None

    def put(self, key: int, offset: int) -> None:
        """Set the offset of a key; a later one replaces an earlier one."""
        if self._count >= _FULL * (self._mask + 1):
            keys, offsets = self._keys, self._offsets
            self._make(2 * (self._mask + 1))
            for known, place in zip(keys, offsets, strict=True):
                if known:
                    slot = self._slot(known)
                    self._keys[slot], self._offsets[slot] = known, place
        slot = self._slot(key)
        self._count += self._keys[slot] == 0
        self._keys[slot], self._offsets[slot] = key, offset

    def _slot(self, key: int) -> int:
        """The place of a key, or the free place where it belongs."""
        if not 0 < key < 1 << 64:
            raise ValueError(f"{key} is no key: give 1 to 2^64 - 1")
        slot = key & self._mask
        while self._keys[slot] not in (0, key):
            slot = (slot + 1) & self._mask
        return slot
