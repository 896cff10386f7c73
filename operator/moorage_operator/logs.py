"""Logging: one line a record on standard error, as text for people or as JSON for collectors."""

import json
import logging
import time
from typing import Final

TEXT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s %(message)s"
TIME: Final = "%Y-%m-%dT%H:%M:%S"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; an exception's traceback is a field of it."""
        fields = {
            "time": f"{time.strftime(TIME, time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(*, level: str, style: str) -> None:
    """Set up logging for the whole process; kopf's own chatter is shown when debugging only.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        style: ``text`` or ``json``.
    """
    formatter = JsonFormatter() if style == "json" else logging.Formatter(TEXT, TIME)
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        logging.getLogger("kopf").setLevel(logging.WARNING)
