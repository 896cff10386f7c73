import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage_csi import logs
from tests.unit.csi_server.puppet import Puppet


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a name short enough for a unix socket in it."""
    made = Path(tempfile.mkdtemp(prefix="mo-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that the process logs, as the program renders it."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(level="debug", style="text", stream=stream)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
