"""The command ``moorage-csi``: from the command line to an exit code.

Alone it is the driver; with a word of ``cli.COMMANDS`` before the flags it asks the driver of this node for something.
"""

import os

# gRPC reads it when it is first imported. Its handlers around fork() cost a lock on every command we
# run, and the children we make call exec at once.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
# Its own lines are not ours in form; below errors they tell of every handshake that a port scan began.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from moorage_csi import cli, logs
from moorage_csi.assembly import Driver
from moorage_csi.host import mounts
from moorage_csi.rpc.identity import version
from moorage_csi.server import ExitCode, Program
from moorage_csi.settings import Settings, SettingsError, load

_log = logging.getLogger("moorage_csi")


def unsuitable(settings: Settings) -> str | None:
    """Return why this host cannot serve a kubelet, or ``None``.

    Without shared propagation every mount would succeed and no pod would see it.
    """
    if settings.registration_dir is None:
        return None
    directory = str(settings.kubelet_dir)
    try:
        if mounts.propagates(directory):
            return None
    except OSError as error:
        return f"--kubelet-dir {directory} cannot be looked at: {error.strerror}"
    return (
        f"mounts made beneath {directory} would not be seen outside: it is not a shared mount. In a pod its "
        "volumeMount needs mountPropagation: Bidirectional; on the host: mount --make-rshared /"
    )


async def serve(settings: Settings) -> ExitCode:
    """Open the pools that can be opened and serve until SIGTERM or SIGINT; a second signal changes nothing, the grace is bounded."""
    if (reason := unsuitable(settings)) is not None:
        _log.error("this host cannot be served", extra={"reason": reason})
        return ExitCode.UNSUITABLE
    driver = await Driver.open(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    program = Program(settings, driver, version=version(sys.path), clock=time.monotonic)
    try:
        return await program.run(stop)
    finally:
        await driver.close()


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> ExitCode:
    """Do what the command line says, and return how it ended."""
    if arguments and arguments[0] in cli.COMMANDS:
        return ExitCode(cli.run(arguments, environment, out=sys.stdout, err=sys.stderr))
    try:
        settings = load(arguments, environment)
    except SettingsError as error:
        sys.stderr.write(f"moorage-csi: {error}\n")
        return ExitCode.USAGE
    logs.configure(level=settings.log_level, style=settings.log_format)
    # Not asyncio.run: it would wait without a bound for threads that hang with their disk.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    code = loop.run_until_complete(serve(settings))
    _log.info("stopped", extra={"code": int(code)})
    return code


def main() -> NoReturn:
    """Run, and leave even where a thread hangs on a dead disk: nothing of ours needs the interpreter's farewell."""
    code = run(sys.argv[1:], os.environ)
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
