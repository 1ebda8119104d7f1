"""What is at the bottom of a library's error, which wraps the system's own several times over."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came of, outermost first.

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
    """Number and words of those causes that are the system's; a library's own message may hold a URL's password."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            yield cause.errno, cause.strerror


class UsageError(Exception):
    """The command line, or what it names, can't be used; the message has a line for each mistake."""
