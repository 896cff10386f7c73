"""Kubernetes quantities, as people write sizes: ``10Gi``, ``500M``, ``1.5Ti``, ``1e9`` or plain bytes.

Only what a size can be: a fraction of a byte is rounded up, as Kubernetes does, and a sign is read so
that a negative size can be named in the error instead of being called unreadable.
"""

import re
from typing import Final

_FACTORS: Final = {
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}

_QUANTITY: Final = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<whole>[0-9]{1,30})(?:\.(?P<fraction>[0-9]{0,30}))?|\.(?P<bare>[0-9]{1,30}))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,2})|(?P<suffix>[KMGTPE]i|[mkMGTPE])?)",
    re.ASCII,
)

MAX_BYTES: Final = 2**63 - 1
"""The largest size that the CSI protocol (int64) can name."""


_BINARY: Final = tuple(factor for factor in _FACTORS if factor.endswith("i"))


class QuantityError(ValueError):
    """The text is not a size, or not one that fits into 63 bits."""


def parse(text: str) -> int:
    """Return the bytes that ``text`` names, rounded up to a whole byte.

    Raises:
        QuantityError: ``text`` is not a quantity, or is beyond ``MAX_BYTES`` either way.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise QuantityError(
            f"{text!r} is not a size; write bytes, or a number with one of Ki Mi Gi Ti Pi Ei k M G T P E"
        )
    fraction = match["fraction"] or match["bare"] or ""
    amount = int(f"{match['sign']}{match['whole'] or ''}{fraction}")
    scale = int(match["exponent"] or (-3 if match["suffix"] == "m" else 0)) - len(fraction)
    amount *= _FACTORS.get(match["suffix"], 1)
    # Whole numbers throughout: a quotient of floats would not be exact, and decimal costs the process memory.
    size: int = amount * 10**scale if scale >= 0 else -(-amount // 10**-scale)
    if abs(size) > MAX_BYTES:
        raise QuantityError(f"{text!r} is larger than {MAX_BYTES} bytes, the largest size that can be asked for")
    return size


def text(size: int) -> str:
    """Return ``size`` bytes as people write them: exactly if a suffix allows it (``300Mi``), else rounded (``76.1Gi``)."""
    fitting = [suffix for suffix in _BINARY if _FACTORS[suffix] <= abs(size)]
    if not fitting:
        return f"{size} bytes"
    factor = _FACTORS[fitting[-1]]
    return f"{size // factor}{fitting[-1]}" if size % factor == 0 else f"{size / factor:.1f}{fitting[-1]}"
