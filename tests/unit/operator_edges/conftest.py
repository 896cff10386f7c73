"""What every test of the edges needs."""

import pytest
from prometheus_client import CollectorRegistry

from moorage_operator.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    """Metrics in a registry of their own."""
    return Metrics(CollectorRegistry(), version="0.0.test")
