"""What a person sees while something long happens: lines with the seconds since the start."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Progress:
    """Writes lines to a stream, each with the time since this object was made; one place decides how they look."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = clock()

    @property
    def elapsed(self) -> float:
        """Return the seconds since this object was made."""
        return self._clock() - self._began

    def say(self, text: str) -> None:
        """Write one line."""
        self._stream.write(f"[{self.elapsed:6.1f}s] {text}\n")
        self._stream.flush()

    @contextlib.contextmanager
    def step(self, text: str, *, usually: str = "") -> Iterator[None]:
        """Announce a step, with how long it usually takes, and tell how long it took when it ends well."""
        began = self._clock()
        self.say(f"{text} (usually {usually})" if usually else text)
        yield
        self.say(f"  done in {self._clock() - began:.1f} s: {text}")


class Silent(Progress):
    """Says nothing: for tests, whose output is pytest's."""

    def say(self, text: str) -> None:
        """Drop the line."""
