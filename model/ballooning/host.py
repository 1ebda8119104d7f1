"""What the controllers need of a hypervisor, and the ways in which a call to it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .guests import Guest
from .marks import Mark


class HostUnavailable(Exception):
    """The host does not respond now; the message is one line."""


class GuestGone(Exception):
    """The host does not list the guest, or the guest is shut off."""


class GuestRefused(Exception):
    """The guest cannot be changed; the message is one line."""


class Host(Protocol):
    """A hypervisor."""

    def guests(self) -> dict[str, Guest]:
        """The running guests by UUID.

        Raises
        ------
        HostUnavailable
        """

    def set_memory(self, uuid: str, memory_mb: float) -> None:
        """Request a balloon size, given as the memory that the guest keeps.

        Raises
        ------
        HostUnavailable, GuestGone, GuestRefused
        """

    def marks(self, uuids: Sequence[str]) -> dict[str, Mark | None]:
        """The marks of guests, None for a guest without one.

        The result may lack the last guests, when reading all takes too long for one call; at least one is read.

        Raises
        ------
        HostUnavailable
        """

    def set_mark(self, uuid: str, mark: Mark | None) -> None:
        """Write a mark into the running domain of a guest, or remove it.

        Raises
        ------
        HostUnavailable, GuestGone, GuestRefused
        """

    def close(self) -> None:
        """Release the connection without waiting for a hung host."""
