"""The driver as a process of its own on a unix socket, as the pod starts it, without a kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from tests.harness.errors import HarnessError
from tests.harness.places import ROOT
from tests.harness.weight import Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.002


class Plugin:
    """The driver in a place: ``csi.sock``, ``driver.log``, ``pools.json`` and ``kubelet`` lie there.

    Attributes:
        pools: the pools' settings as the file has them.
        flags: further flags.
        environment: further variables.
    """

    def __init__(
        self,
        place: Path,
        pools: Sequence[Mapping[str, object]],
        *flags: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.place = place
        self._pools = pools
        self._flags = flags
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def socket(self) -> Path:
        """What it serves on."""
        return self.place / "csi.sock"

    @property
    def kubelet(self) -> Path:
        """The folder beneath which it publishes."""
        return self.place / "kubelet"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.place / "driver.log"

    def start(self) -> float:
        """Start it, and return the seconds until its socket takes connections.

        Raises:
            HarnessError: it does not within some time, with the end of its log.
        """
        self.kubelet.mkdir(exist_ok=True)
        (self.place / "pools.json").write_text(json.dumps({"pools": list(self._pools)}))
        argv = [
            *(sys.executable, "-m", "moorage_csi"),
            *("--endpoint", f"unix://{self.socket}"),
            *("--listen", ""),
            *("--registration-dir", ""),
            *("--metrics-listen", ""),
            *("--node-name", "node-1"),
            *("--pools-file", str(self.place / "pools.json")),
            *("--kubelet-dir", str(self.kubelet)),
            *self._flags,
        ]
        # As in the image, where the bytecode is compiled without docstrings when it is built.
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "csi"),
            "PYTHONPYCACHEPREFIX": str(self.place / "bytecode"),
            "PYTHONOPTIMIZE": "2",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with self.log.open("ab") as log:
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | self._environment
            )
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() - self._began > START_SECONDS:
                said = self.log.read_text()[-2000:]
                self.stop()
                raise HarnessError(f"the driver does not serve {self.socket}; it said:\n{said}")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - self._began

    def stop(self) -> None:
        """End it as a node ends a pod, and with SIGKILL if that does not help. Harmless when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def weigh(self) -> Weight:
        """Its memory now."""
        assert self._process is not None
        return Weight.of(self._process.pid)

    def _serves(self) -> bool:
        with contextlib.suppress(OSError), contextlib.closing(socket.socket(socket.AF_UNIX)) as tried:
            tried.connect(str(self.socket))
            return True
        return False
