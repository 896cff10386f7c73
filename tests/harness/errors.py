"""What the harness says when it cannot go on: the reason, and where there is one, the command that helps."""

from __future__ import annotations


class HarnessError(Exception):
    """The base of all: its text is meant for the person at the keyboard."""


class MissingError(HarnessError):
    """The machine lacks something that cannot be installed from here."""


class StartError(HarnessError):
    """A part of the cluster did not come up; the text carries the end of its log."""


class CommandError(HarnessError):
    """A command that had to succeed failed; the text carries its argv, exit code and what it wrote."""
