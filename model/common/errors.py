"""Errors of the command line, and the system errors at the bottom of a library's error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class UsageError(Exception):
    """The command line, or what it names, cannot be used; the message has a line for each mistake."""


class SettingsError(ValueError):
    """Settings that cannot be used.

    Attributes
    ----------
    faults : sequence of str
        One line each, starting with the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class PassingFault(Exception):
    """Something that the settings name cannot be used at the moment, and may be usable later; the message is one line.

    Examples are a full disk, a file that another process has locked, and a folder that is not mounted yet. A daemon
    tries again, a command that runs once ends with exit code 1.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first.

    >>> try:
    ...     try:
    ...         {}["disk"]
    ...     except KeyError as error:
    ...         raise ValueError("no such figure") from error
    ... except ValueError as error:
    ...     [type(cause).__name__ for cause in causes(error)]
    ['ValueError', 'KeyError']
    """
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def system_words(error: BaseException) -> Iterator[tuple[int | None, str]]:
    """Number and text of each cause that is a system error; a library's own message may contain a URL's password."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            yield cause.errno, cause.strerror
