"""Log lines: one event a line, a constant message and key=value fields, and never a secret.

While an RPC is being answered its scope is kept in a context variable: every line that any module
writes meanwhile, in the event loop or in a thread started by it with the context copied (as
``asyncio.to_thread`` does), carries the request's id and has the request's secrets blanked out. That
is what makes the promise hold for lines written by code that knows nothing of secrets, and for
tracebacks.
"""

import contextvars
import dataclasses
import datetime as dt
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TextIO

from google.protobuf import text_encoding

BLANK: Final = "***stripped***"

_OWN_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,\-\[\]]+", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What must not be seen: the values, in every spelling that Python or protobuf gives them."""

    spellings: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Iterable[str]) -> "Secrets":
        """Collect the spellings of ``values``; empty values hide nothing and are left out."""
        spellings = {spelling for value in values if value for spelling in _spellings(value)}
        # The longest first, so that a secret inside another one does not leave the rest of it standing.
        return cls(spellings=tuple(sorted(spellings, key=lambda spelling: (-len(spelling), spelling))))

    def blanked(self, text: str) -> str:
        """Return ``text`` with every secret replaced."""
        for spelling in self.spellings:
            text = text.replace(spelling, BLANK)
        return text


def _spellings(value: str) -> Iterator[str]:
    yield value
    # repr picks its quotes, and so whether it escapes them, by what else stands in the text.
    escaped = repr(value + "'\"")[1:-4]
    yield escaped
    yield escaped.replace("\\'", "'")
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield text_encoding.CEscape(value.encode(), as_utf8=False)
    yield text_encoding.CEscape(value, as_utf8=True)  # type: ignore[arg-type] # the stub knows bytes only


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The RPC being answered in this context."""

    request: str
    secrets: Secrets


SCOPE: Final[contextvars.ContextVar[Scope | None]] = contextvars.ContextVar("scope", default=None)


def fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the caller gave with ``extra``, in the order given."""
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


class Formatter(logging.Formatter):
    """Renders a record as one line, of ``text`` or of ``json``.

    A traceback follows on lines of its own in text, and is a field in JSON.
    """

    def __init__(self, style: str) -> None:
        super().__init__()
        self._render = _as_json if style == "json" else _as_text

    def format(self, record: logging.LogRecord) -> str:
        """Blank the secrets of the RPC in whose context the record was made, then render.

        In this order: quoting what holds a secret would give it one more spelling.
        """
        scope = SCOPE.get()
        secrets = scope.secrets if scope is not None else Secrets()
        more = {key: _shown(value, secrets) for key, value in fields(record).items()}
        if scope is not None:
            more.setdefault("request", scope.request)
        head: dict[str, object] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        trace = secrets.blanked(self.formatException(record.exc_info)) if record.exc_info else None
        return self._render(head, secrets.blanked(record.getMessage()), more, trace)


def _shown(value: object, secrets: Secrets) -> object:
    """Return the value as it may be rendered: a number or nothing as it is, anything else as text."""
    return value if value is None or isinstance(value, bool | int | float) else secrets.blanked(str(value))


def _as_json(head: Mapping[str, object], message: str, more: Mapping[str, object], trace: str | None) -> str:
    entry = {**head, "message": message, **more}
    if trace is not None:
        entry["traceback"] = trace
    return json.dumps(entry, ensure_ascii=False)


def _as_text(head: Mapping[str, object], message: str, more: Mapping[str, object], trace: str | None) -> str:
    parts = [str(head["time"]), f"{str(head['level']).upper():7}", str(head["logger"])]
    parts.append(message if message.isprintable() else json.dumps(message)[1:-1])
    parts.extend(f"{key}={_value(value)}" for key, value in more.items())
    line = " ".join(parts)
    return line if trace is None else f"{line}\n{trace}"


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def configure(*, level: str, style: str, stream: TextIO | None = None) -> None:
    """Send every record of the process to ``stream`` (standard error), replacing what was set up before."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(Formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio and grpc say on debug and info how they poll, which nobody reads.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(logging.WARNING)
