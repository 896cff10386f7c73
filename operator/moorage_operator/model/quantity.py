"""Kubernetes quantities, exactly.

``1.5Gi``, ``1e3``, ``100m``, ``12E`` (exa) and ``12E3`` (thousand) are all written by people.
Fractions of a byte round up, as the API server's own ``Value()`` does: a claim never gets less.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

from moorage_operator.errors import QuantityError

_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL: Final = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<suffix>[KMGTPE]i|[numkMGTPE]?))"
)
_MAX_LENGTH: Final = 64


def parse_bytes(text: str | int) -> int:
    """Read a quantity as whole bytes, rounded up.

    Raises:
        QuantityError: it is not a quantity.
    """
    if isinstance(text, int):
        return text
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise QuantityError(f"{text!r} is not a quantity: expected a number with one of Ki Mi Gi Ti Pi Ei k M G T P E")
    value = Fraction(Decimal(match["number"]))
    exponent = match["exponent"]
    if exponent is not None:
        value *= Fraction(10) ** int(exponent)
    else:
        suffix = match["suffix"]
        value *= _BINARY[suffix] if suffix in _BINARY else _DECIMAL[suffix]
    return -(-value.numerator // value.denominator)


def format_bytes(size: int) -> str:
    """Write whole bytes in the largest binary unit that is exact: ``1Gi``, ``1100Mi``, ``1000000``."""
    if size:
        for suffix, factor in reversed(_BINARY.items()):
            if size % factor == 0:
                return f"{size // factor}{suffix}"
    return str(size)
