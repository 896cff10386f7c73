"""One operator process against an API server: started as a pod starts it, timed until it is ready, and weighed."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness.weight import Weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from tests.harness.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]
USER = "moorage-operator"
USERS = {USER: "system:masters"}
"""The operator's own user, so that the audit log tells its writes from the bench's."""
NAMESPACE = "bench-operator"
LOOK_SECONDS = 0.02
LIKE_THE_IMAGE = "import sys\n\nsys.modules['kubernetes'] = None\n"
"""kopf imports that library wherever it finds it; tests have it, the image has not."""


class EndedError(Exception):
    """The operator has ended, or is not ready in time; with the end of its log."""


class Replica:
    """An operator; its bytecode is compiled once for all replicas of a folder, as the image's is.

    Args:
        plane: the API server.
        folder: for its log and its bytecode.
        environment: further variables.
        flags: further flags of the operator.
    """

    def __init__(
        self, plane: ControlPlane, folder: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._plane = plane
        self._folder = folder
        self._flags = flags
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._address = f"127.0.0.1:{_free_port()}"
        self._began = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """The file it writes its log to."""
        return self._folder / "operator.log"

    def start(self) -> None:
        """Start the process; `wait_ready` tells when it can be used."""
        (self._folder / "sitecustomize.py").write_text(LIKE_THE_IMAGE)
        environment = os.environ | {
            "PYTHONPATH": f"{self._folder}:{ROOT / 'operator'}:{ROOT / 'csi'}",
            "PYTHONPYCACHEPREFIX": str(self._folder / "bytecode"),
            "PYTHONOPTIMIZE": "2",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        argv = [
            *(sys.executable, "-m", "moorage_operator", f"--kubeconfig={self._plane.access(USER).kubeconfig}"),
            *(f"--namespace={NAMESPACE}", f"--listen={self._address}", *self._flags),
        ]
        with self.log.open("ab") as log:
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                argv, stdout=log, stderr=log, cwd=ROOT, env=environment | self._environment
            )

    def wait_ready(self, *, seconds: float) -> float:
        """Wait until /readyz answers 200, and return the seconds since the process was started.

        Ready means: everything that exists is known, it leads or stands by, and its certificates are made.

        Raises:
            EndedError: it is not, in that time.
        """
        assert self._process is not None
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() - self._began > seconds:
                raise EndedError(f"not ready within {seconds:g} s: {self.log.read_text()[-3000:]}")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - self._began

    def weigh(self) -> Weight:
        """Its memory now."""
        assert self._process is not None
        return Weight.of(self._process.pid)

    def processor_seconds(self) -> float:
        """The processor time that it has used so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it as a node ends a pod, and with SIGKILL if that does not help. Harmless when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _ready(self) -> bool:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(http.client.HTTPConnection(self._address, timeout=5)) as connection,
        ):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        return False


@contextlib.contextmanager
def folder(plane: ControlPlane) -> Iterator[Path]:
    """A folder beside the plane's own for the logs and the bytecode of its operators, removed at the end."""
    made = plane.directory / "operators"
    made.mkdir(parents=True, exist_ok=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
