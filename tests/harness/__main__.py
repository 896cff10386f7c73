"""The harness from a shell: `python -m tests.harness api|...`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.harness import (
    checks,
    controlplane,
    demo,
    kernel_suite,
    product_image,
    suites,
    targets,
    virtual_machine,
    watching,
)
from tests.harness.cluster import Cluster, every_name
from tests.harness.controlplane import ControlPlane
from tests.harness.errors import HarnessError
from tests.harness.places import ROOT
from tests.harness.progress import Progress


def main() -> int:
    """Parse the command line and run one command; every harness error becomes one readable message."""
    arguments = _parser().parse_args()
    # A polite end becomes an exception, so that children are ended and files removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    progress = Progress()
    try:
        code: int = arguments.run(arguments, progress)
    except HarnessError as error:
        progress.say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.harness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    api = commands.add_parser("api", help="run an API server and etcd on loopback until interrupted")
    api.add_argument("--kubeconfig", type=Path, help="write the administrator's kubeconfig here as well")
    api.add_argument("--name", default=f"shell-{os.getpid()}", help="name of its state folder")
    api.add_argument("--controllers", action="store_true", help="run the controller manager too")
    api.add_argument("--no-binder", action="store_true", help="without the in-tree persistent-volume binder")
    api.add_argument("--scheduler", action="store_true", help="run the scheduler too")
    api.add_argument("--user", action="append", default=[], help="a further administrator with a kubeconfig of its own")
    api.set_defaults(run=_run_api)
    up = commands.add_parser("up", help="start a cluster and leave it running")
    up.add_argument("name")
    up.add_argument("--nodes", type=int, default=1)
    up.add_argument("--no-binder", action="store_true", help="without the in-tree persistent-volume binder")
    up.set_defaults(run=_run_up)
    down = commands.add_parser(
        "down", help="remove the named clusters; without a name the demonstration and all left-overs"
    )
    down.add_argument("name", nargs="*")
    down.set_defaults(run=_run_down)
    watch = commands.add_parser("watch", help="clean up when a process ends (started by the harness itself)")
    watch.add_argument("--owner", type=int, required=True, help="pid of the process")
    watch.add_argument("--cluster", help="name of the cluster to remove")
    watch.add_argument("--folder", type=Path, help="folder to remove, with the loop devices on its files")
    watch.set_defaults(run=_run_watch)
    demo = commands.add_parser("demo", help="show how a claim becomes a mounted volume")
    demo.add_argument("--cluster", default="embedded", help="embedded, kind or current")
    demo.add_argument("--image", default="", help="the image to use with --cluster=current")
    demo.set_defaults(run=_run_demo)
    test = commands.add_parser("test", help="run the suites")
    test.add_argument("suite", nargs="*")
    test.set_defaults(run=lambda arguments, progress: suites.run(arguments.suite, progress=progress))
    kernel_vm = commands.add_parser("kernel-vm", help="run the kernel suite in a Debian kernel in a virtual machine")
    kernel_vm.add_argument("pytest", nargs="*", help="after `--`: further arguments of pytest, as in `-- -k quotas`")
    kernel_vm.add_argument(
        "--disk", choices=list(virtual_machine.DISKS), default="ext4", help="what is made on its disk"
    )
    kernel_vm.set_defaults(run=_run_kernel_vm)
    check = commands.add_parser("check", help="run the static checks")
    check.set_defaults(run=lambda _, progress: checks.run_all(progress=progress))
    generate = commands.add_parser("generate", help="write generated files anew")
    generate.add_argument("what", choices=["stubs", "manifests"])
    generate.set_defaults(run=_run_generate)
    image = commands.add_parser("image", help="build the product's image")
    image.set_defaults(run=_run_image)
    return parser


def _run_api(arguments: argparse.Namespace, progress: Progress) -> int:
    plane = ControlPlane(
        arguments.name,
        controllers=arguments.controllers,
        binder=not arguments.no_binder,
        scheduler=arguments.scheduler,
        users=dict.fromkeys(arguments.user, "system:masters"),
        progress=progress,
    )
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with plane:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        if arguments.kubeconfig is not None:
            arguments.kubeconfig.write_text(plane.kubeconfig.read_text())
        for user in ("admin", *arguments.user):
            progress.say(f"ready: export KUBECONFIG={plane.access(user).kubeconfig}")
        signal.sigwait(signals)
    return 0


def _run_up(arguments: argparse.Namespace, progress: Progress) -> int:
    cluster = Cluster(
        arguments.name, nodes=arguments.nodes, binder=not arguments.no_binder, detached=True, progress=progress
    ).start()
    progress.say(f"ready: export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _run_down(arguments: argparse.Namespace, progress: Progress) -> int:
    """Remove the named clusters, or the demonstration and whatever nobody wants any more."""
    for name in arguments.name or every_name():
        cluster = Cluster(name)
        if not arguments.name and name != targets.DEMO and cluster.kept:
            progress.say(f"cluster {name} was started by hand and stays: python -m tests.harness down {name}")
            continue
        with progress.step(f"removing cluster {name}"):
            removed = cluster.remove_if_abandoned()
        if not removed:
            progress.say(f"  cluster {name} is in use by another process and stays")
    if not arguments.name:
        targets.remove_kind(progress=progress)
        controlplane.sweep()
        suites.sweep()
        progress.say("nothing else is left")
    return 0


def _run_watch(arguments: argparse.Namespace, progress: Progress) -> int:
    watching.wait_for_end(arguments.owner)
    if arguments.cluster is not None and Cluster(arguments.cluster).directory.exists():
        progress.say(f"process {arguments.owner} ended and left cluster {arguments.cluster}: removing it")
        Cluster(arguments.cluster).remove_if_abandoned()
    if arguments.folder is not None and arguments.folder.exists():
        progress.say(f"process {arguments.owner} ended and left {arguments.folder}: removing it")
        watching.remove(arguments.folder)
    return 0


def _run_demo(arguments: argparse.Namespace, progress: Progress) -> int:
    return demo.run(cluster=arguments.cluster, image=arguments.image, progress=progress)


def _run_kernel_vm(arguments: argparse.Namespace, progress: Progress) -> int:
    disk = virtual_machine.DISKS[arguments.disk]
    return kernel_suite.run_in_virtual_machine(arguments.pytest, disk=disk, progress=progress)


def _run_generate(arguments: argparse.Namespace, progress: Progress) -> int:
    with progress.step(f"generating {arguments.what}"):
        if arguments.what == "stubs":
            checks.generate_stubs(ROOT / "csi")
        else:
            checks.generate_manifests()
    return 0


def _run_image(arguments: argparse.Namespace, progress: Progress) -> int:
    image = product_image.build(progress=progress)
    progress.say(f"{image.name} in {image.archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
