"""An API server and etcd on loopback: a real one in seconds, for tests that need no node.

Its processes die with the thread that started them. What a killed run leaves is only a folder; the next start of the
same name removes it, and ends processes that would still be there.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from typing import TYPE_CHECKING, Self

from tests.harness import apiclient, locks, processes
from tests.harness.components import Access, Command, Plane
from tests.harness.errors import StartError
from tests.harness.places import run_dir
from tests.harness.progress import Progress, Silent

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

LOOPBACK = "127.0.0.1"
PROGRAMS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
ATTEMPTS = 3
"""A free port can be taken by somebody else before it is used: how often to try with other ones."""


class ControlPlane:
    """etcd and a kube-apiserver on free ports of 127.0.0.1, on request with the controller manager and scheduler.

    Args:
        name: names the folder of its state; two of the same name cannot run at once.
        controllers: run the controller manager too.
        binder: with the in-tree persistent-volume binder (only with `controllers`).
        scheduler: run the scheduler too.
        users: further users and the group of each, every one with a token of its own (see `access`).
        progress: where to tell what happens.
    """

    def __init__(
        self,
        name: str,
        *,
        controllers: bool = False,
        binder: bool = True,
        scheduler: bool = False,
        users: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name = name
        self._controllers = controllers
        self._binder = binder
        self._scheduler = scheduler
        self._users = tuple((users or {}).items())
        self._progress = progress or Silent()
        self._plane: Plane | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Command] = {}
        self._lock: contextlib.ExitStack = contextlib.ExitStack()

    @property
    def directory(self) -> Path:
        """Return the folder of the state, logs included."""
        return run_dir() / "planes" / self.name

    @property
    def url(self) -> str:
        """Return the address of the API server."""
        return self.access().url

    @property
    def token(self) -> str:
        """Return the administrator's token."""
        return self.access().token

    @property
    def ca_file(self) -> Path:
        """Return the file with the CA's certificate."""
        return self.access().ca_file

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig."""
        return self.access().kubeconfig

    @property
    def audit_log(self) -> Path:
        """Return the file with one line of JSON for each write that reached the API server."""
        return self._started_plane().audit_log

    def access(self, user: str = "admin") -> Access:
        """Return how a user reaches the API server."""
        return self._started_plane().access(user)

    def start(self) -> Self:
        """Start everything and return when the API server is ready.

        Raises:
            StartError: something did not come up, or another process runs a plane of this name.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(_hold(self.directory))
        sweep()
        _remove(self.directory)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once()
            except StartError:
                self._end_processes()
                if attempt == ATTEMPTS or "address already in use" not in self._logs():
                    raise
            else:
                return self
        raise AssertionError

    def stop(self) -> None:
        """End the processes and remove the folder. Idempotent."""
        self._end_processes()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.close()
        self._plane = None

    def kill(self, component: str) -> None:
        """End one program with SIGKILL.

        Raises:
            KeyError: it does not run.
        """
        process = self._running.pop(component)
        process.kill()
        process.wait()

    def restart(self, component: str) -> None:
        """Start a program again that was killed (or kill and start it), on its old state and ports.

        Returns when the API server is ready, unless that one was killed too and not started again yet.
        """
        if component in self._running:
            self.kill(component)
        self._spawn(self._commands[component])
        if "kube-apiserver" in self._running:
            self._wait_for_api()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started_plane(self) -> Plane:
        if self._plane is None:
            raise StartError(f"the control plane {self.name!r} was not started")
        return self._plane

    def _start_once(self) -> None:
        port, etcd_port, etcd_peer_port = _free_ports(3)
        plane = Plane(
            directory=self.directory,
            bind=LOOPBACK,
            host=LOOPBACK,
            port=port,
            etcd_port=etcd_port,
            etcd_peer_port=etcd_peer_port,
            in_cluster=False,
            users=self._users,
            controllers=self._controllers,
            binder=self._binder,
        )
        plane.prepare()
        self._plane = plane
        commands = [plane.etcd(), plane.api_server()]
        if plane.controllers:
            commands.append(plane.controller_manager())
        if self._scheduler:
            commands.append(plane.scheduler())
        self._commands = {command.name: command for command in commands}
        with self._progress.step(f"starting {', '.join(self._commands)}", usually="5 s"):
            for command in commands[:2]:
                self._spawn(command)
            self._wait_for_api()
            for command in commands[2:]:
                self._spawn(command)

    def _spawn(self, command: Command) -> None:
        process = processes.spawn(
            command.argv, log=self.directory / f"{command.name}.log", cwd=self.directory, dies_with_parent=True
        )
        self._running[command.name] = process

    def _wait_for_api(self) -> None:
        access = self.access()
        processes.wait_until(
            lambda: apiclient.ready(access), what="the API server", seconds=60, every=0.1, broken=self._broken
        )

    def _broken(self) -> str:
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                return f"{name} ended with {code}:\n{processes.tail(self.directory / f'{name}.log')}"
        return ""

    def _end_processes(self) -> None:
        for process in reversed(self._running.values()):
            process.kill()
            process.wait()
        self._running.clear()

    def _logs(self) -> str:
        return "".join(processes.tail(self.directory / f"{name}.log") for name in self._commands)


def sweep() -> None:
    """Remove what killed runs left: every plane whose name nobody holds."""
    parent = run_dir() / "planes"
    for directory in [entry for entry in parent.glob("*") if entry.is_dir()]:
        with contextlib.suppress(StartError), _hold(directory):
            _remove(directory)


@contextlib.contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Hold a plane's name."""
    with locks.hold(directory.with_name(f".{directory.name}.lock"), wait=False) as held:
        if not held:
            raise StartError(f"a control plane {directory.name!r} runs already (state in {directory})")
        yield


def _remove(directory: Path) -> None:
    """End the processes that a plane left, and remove its folder."""
    for process in processes.running():
        if process.program in PROGRAMS and any(f"{directory}/" in word for word in process.argv):
            process.identity.end()
    shutil.rmtree(directory, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; all are held until all are known, so no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
