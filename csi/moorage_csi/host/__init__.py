"""The kernel, and nothing else: paths, mounts, loop devices, filesystems, quotas and the few commands that are run.

Nothing here knows of volumes or of CSI. Failures are OSError as the kernel gives them, CommandError where a
program failed, and ValueError for an argument that can never be right. Functions that are not ``async`` may block
on a disk and are called from a thread pool.
"""
