"""Long lists in pages: a token is the id of the last entry that was told.

Nothing is remembered between two pages, so a restart in the middle changes nothing, and what is made or deleted
meanwhile is told or not, but nothing else is left out or told twice.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from moorage_csi.errors import InFlightError, InvalidArgumentError

Entry = TypeVar("Entry")


def page(entries: Mapping[str, Entry], *, token: str, most: int, ids: re.Pattern[str]) -> tuple[tuple[Entry, ...], str]:
    """The entries after the one that the token names, by id, ``most`` of them (0: all), and the token of the next page.

    That one is empty where nothing is left.

    Args:
        entries: by id.
        token: an id, of an entry that may be gone by now; empty for the first page.
        most: how many entries are told at most.
        ids: what an id looks like.

    Raises:
        InvalidArgumentError: ``most`` is negative.
        InFlightError: the token is none of ours; CSI, ListVolumes: ABORTED, and the caller begins anew.
    """
    if most < 0:
        raise InvalidArgumentError(f"max_entries is {most}: allowed are 0, for all, and more")
    if token and not ids.fullmatch(token):
        raise InFlightError(f"starting_token {token!r} is none that was given: begin the list anew, without one")
    after = sorted(each for each in entries if each > token)
    told = after[:most] if most else after
    return tuple(entries[each] for each in told), told[-1] if len(told) < len(after) else ""
