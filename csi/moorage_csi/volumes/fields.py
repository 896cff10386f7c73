"""Reading a record strictly: every field once, of the right type, none missing and none left over.

A record decides whether data may go. So what is not exactly what this release writes is never made sense of: it is
damaged, and a damaged record is reported and left alone.
"""

import enum
import json
import math
import re
from typing import Any, Self, TypeVar

Word = TypeVar("Word", bound=enum.StrEnum)


class DamagedRecordError(Exception):
    """The bytes are not a record of this release; the message says in what way."""


class Fields:
    """Takes fields out of a JSON object. All methods raise DamagedRecordError, which names the field."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._left = dict(document)

    @classmethod
    def read(cls, content: bytes, *, newest: int) -> tuple[int, Self]:
        """The version in these bytes, from 1 to ``newest``, and all the other fields."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedRecordError(f"not JSON: {error}") from error
        if not isinstance(document, dict):
            raise DamagedRecordError(f"a JSON {type(document).__name__} where an object belongs")
        version = document.pop("version", None)
        if type(version) is not int or version < 1:
            raise DamagedRecordError(f"version is {version!r}, not a number from 1")
        if version > newest:
            raise DamagedRecordError(f"version {version} was written by a newer release; this one reads {newest}")
        return version, cls(document)

    def take(self, key: str, *types: type) -> Any:
        """The value, which must be of exactly one of these types."""
        if key not in self._left:
            raise DamagedRecordError(f"field {key!r} is missing")
        value = self._left.pop(key)
        # ``type`` and not isinstance: JSON's true is an int to Python, and a size is never true.
        if type(value) not in types:
            raise DamagedRecordError(f"field {key!r} is {value!r}, of type {type(value).__name__}")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value: str = self.take(key, str)
        return value

    def word(self, key: str, words: type[Word]) -> Word:
        """One of a few words."""
        value = self.text(key)
        try:
            return words(value)
        except ValueError as error:
            raise DamagedRecordError(f"field {key!r} is {value!r}, not one of {', '.join(words)}") from error

    def one_of(self, key: str, *patterns: re.Pattern[str]) -> str:
        """A string that fits one of the patterns, whole."""
        value = self.text(key)
        if not any(pattern.fullmatch(value) for pattern in patterns):
            raise DamagedRecordError(f"{key} {value!r} is not one that this driver gives")
        return value

    def number(self, key: str, *, least: int) -> int:
        """A whole number, not below ``least``."""
        value: int = self.take(key, int)
        if value < least:
            raise DamagedRecordError(f"field {key!r} is {value}, below {least}")
        return value

    def moment(self, key: str) -> float:
        """Seconds since the epoch."""
        value = self.take(key, int, float)
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds):
            raise DamagedRecordError(f"field {key!r} is no moment")
        return seconds

    def permissions(self, key: str) -> int:
        """Permissions in octal, as a string of four digits."""
        value = self.text(key)
        if not re.fullmatch(r"0[0-7]{3}", value):
            raise DamagedRecordError(f"{key} are {value!r}, not octal such as '0770'")
        return int(value, 8)

    def is_null(self, key: str) -> bool:
        """Whether the value is null; only if so, it counts as taken."""
        if key in self._left and self._left[key] is None:
            del self._left[key]
            return True
        return False

    def end(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise DamagedRecordError(f"unknown fields {', '.join(sorted(self._left))}")
