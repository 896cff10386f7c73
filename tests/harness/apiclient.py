"""The few questions the harness itself asks an API server, with the standard library alone."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.harness.components import Access


def get(access: Access, path: str, *, seconds: float = 2) -> Any:
    """Return the parsed answer to a GET; text where it is no JSON.

    Raises:
        OSError: the server cannot be reached or refuses.
    """
    request = urllib.request.Request(access.url + path, headers={"Authorization": f"Bearer {access.token}"})  # noqa: S310
    context = ssl.create_default_context(cafile=str(access.ca_file))
    with urllib.request.urlopen(request, timeout=seconds, context=context) as answer:  # noqa: S310
        body = answer.read().decode()
    try:
        return json.loads(body)
    except ValueError:
        return body


def ready(access: Access) -> bool:
    """Tell whether the API server says that it is ready."""
    try:
        return bool(get(access, "/readyz") == "ok")
    except (OSError, urllib.error.URLError):
        return False
