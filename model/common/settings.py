"""Declarations of settings: a key, its type with limits, its default and its help text.

Each package declares its settings beside what they set. The declarations validate values (through msgspec), and the
configuration page of the docs and the commented example ``dotenv`` are rendered from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

#: Every declared setting by its key, in the order of declaration.
SETTINGS: dict[str, Setting[Any]] = {}


class InvalidValue(ValueError):
    """A value that a setting does not take; the message follows the key."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting(Generic[T]):
    """One key of the environment or of ``.env``.

    Attributes
    ----------
    key : str
    default : T
        The value when the key is unset or empty.
    parse : callable
        Text to value.

        Raises
        ------
        InvalidValue
    description : str
        Sentences for the docs and for ``dotenv``.
    section : str
        Heading under which it is documented.
    shown : str
        The default as ``dotenv`` shows it; empty where there is none.
    example : str
        A value that ``dotenv`` shows instead of a default.
    limits : str
        The values that are taken, in words.
    aliases : tuple of str
        Older keys; the setting's own key overrides them.
    secret : bool
        Whether the value must never be shown.
    """

    key: str
    default: T
    parse: Callable[[str], T] = field(repr=False)
    description: str
    section: str
    shown: str = ""
    example: str = ""
    limits: str = ""
    aliases: tuple[str, ...] = ()
    secret: bool = False

    def __post_init__(self) -> None:
        SETTINGS[self.key] = self


class Section:
    """Declares the settings under one heading.

    Parameters
    ----------
    title : str
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def number(
        self,
        key: str,
        default: float,
        least: float,
        most: float,
        description: str,
        **more: Any,
    ) -> Setting[float]:
        """A number within limits."""
        kind = Annotated[float, msgspec.Meta(ge=least, le=most)]
        limits = f"a number from {least:g} to {most:g}"
        return Setting(
            key=key,
            default=default,
            parse=lambda text: _converted(text, kind, limits),
            description=description,
            section=self.title,
            limits=limits,
            **{"shown": f"{int(default)}" if default == int(default) else f"{default:g}", **more},
        )

    def whole(
        self,
        key: str,
        default: int,
        least: int,
        most: int,
        description: str,
        **more: Any,
    ) -> Setting[int]:
        """A whole number within limits."""
        kind = Annotated[float, msgspec.Meta(ge=least, le=most)]
        limits = f"a whole number from {least} to {most}"

        def parse(text: str) -> int:
            value: float = _converted(text, kind, limits)
            if value != int(value):
                raise InvalidValue(f"{text!r} is not {limits}")
            return int(value)

        return Setting(
            key=key,
            default=default,
            parse=parse,
            description=description,
            section=self.title,
            shown=str(default),
            limits=limits,
            **more,
        )

    def value(
        self,
        key: str,
        default: T,
        parse: Callable[[str], T],
        description: str,
        **more: Any,
    ) -> Setting[T]:
        """A value with a parser of its own, which raises InvalidValue."""
        return Setting(key=key, default=default, parse=parse, description=description, section=self.title, **more)

    def text(
        self,
        key: str,
        default: str,
        description: str,
        *,
        parse: Callable[[str], str] = str,
        **more: Any,
    ) -> Setting[str]:
        """Text in one line."""
        return self.value(key, default, parse, description, **{"shown": default, **more})

    def choice(
        self,
        key: str,
        default: str,
        choices: tuple[str, ...],
        description: str,
        **more: Any,
    ) -> Setting[str]:
        """One of a few words."""
        limits = f"one of {', '.join(choices)}"

        def parse(text: str) -> str:
            if text not in choices:
                raise InvalidValue(f"{text!r} is not {limits}")
            return text

        return self.text(key, default, description, parse=parse, limits=limits, **more)

    def json(
        self,
        key: str,
        default: T,
        parse: Callable[[Any], T],
        description: str,
        **more: Any,
    ) -> Setting[T]:
        """JSON text; ``parse`` checks the decoded value and raises ValueError."""

        def parse_text(text: str) -> T:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                raise InvalidValue("is not JSON") from None
            try:
                return parse(value)
            except ValueError as error:
                raise InvalidValue(str(error)) from None

        return self.value(key, default, parse_text, description, **more)


def _converted(text: str, kind: Any, limits: str) -> Any:
    try:
        return msgspec.convert(text.strip(), kind, strict=False)
    except msgspec.ValidationError:
        raise InvalidValue(f"{text!r} is not {limits}") from None


def ascii_token(text: str) -> str:
    """Parse a token that is sent in an HTTP header.

    Raises
    ------
    InvalidValue
    """
    if not text.isascii():
        raise InvalidValue("cannot be sent: it contains characters that are not ASCII")
    return text
