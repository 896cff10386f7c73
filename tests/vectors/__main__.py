"""`make vectors`: the recorded behaviour of the in-tree binder against our decisions.

    python -m tests.vectors [FILE]

Prints how many vectors passed and failed, and of each failed one what differs. Exit code 0 when all passed, 1 when
some failed, 2 when the file cannot be used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from moorage_operator.errors import OperatorError
from tests.vectors.book import BookError, read
from tests.vectors.checking import differences

if TYPE_CHECKING:
    from tests.vectors.shapes import Row


def main(arguments: list[str]) -> int:
    """Run a file of vectors."""
    path = Path(arguments[0]) if arguments else Path(__file__).with_name("binding_vectors.yaml")
    try:
        book = read(path)
    except BookError as error:
        sys.stderr.write(f"vectors: {error}\n")
        return 2
    failed = 0
    for vector in book.vectors:
        problems = _run(vector, book.sets)
        if problems:
            failed += 1
            sys.stdout.write(f"{vector.get('id', '(no id)')}: {vector.get('title', '')}\n")
            sys.stdout.writelines(f"    {problem}\n" for problem in problems)
    sys.stdout.write(f"{len(book.vectors) - failed} passed, {failed} failed\n")
    return 1 if failed else 0


def _run(vector: Row, sets: Row) -> list[str]:
    """What differs; a vector that cannot even be run is one that fails."""
    try:
        return differences(vector, sets)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OperatorError,
    ) as error:
        return [f"cannot be run: {type(error).__name__}: {error}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
