"""RPCs of the protocol that this driver has not: present, so that the answer is ours and says where to look."""

from typing import Any, NoReturn

from moorage_csi.errors import UnimplementedError


def unoffered(name: str, *, instead: str) -> Any:
    """A method for a servicer that refuses; ``instead`` names the RPC that says what there is."""

    async def refuse(servicer: object, request: object, context: object) -> NoReturn:
        del servicer, request, context
        raise UnimplementedError(f"{name} is not offered by this driver; {instead} says what is")

    return refuse
