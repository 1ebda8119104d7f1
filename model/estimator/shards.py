"""The part of a fleet's nodes that one of several masters computes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..common.settings import InvalidValue


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a fleet.

    Attributes
    ----------
    index, number : int
        From 1 to the number of parts; 1 of 1 is the whole fleet.
    """

    index: int = 1
    number: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.number}"

    def has(self, node: str) -> bool:
        """Whether a node belongs to this part.

        The part depends on the name of the node alone, so that nodes that come and go do not move others.
        """
        digest = hashlib.sha256(node.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.number == self.index - 1

    def select(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """The nodes of this part, in their order."""
        return tuple(node for node in nodes if self.has(node))


def parse_shard(text: str) -> Shard:
    """Parse ``2/3``, the second of three parts.

    Raises
    ------
    InvalidValue
    """
    match = re.fullmatch(r"\s*(\d{1,4})\s*/\s*(\d{1,4})\s*", text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.index <= shard.number:
        raise InvalidValue(f"{text!r} is not a part of a whole such as 2/3")
    return shard
