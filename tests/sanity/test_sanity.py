import os

import pytest

from tests.sanity.suite import MODES, Mode, binary, run

pytestmark = [
    pytest.mark.sanity,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(binary() is None, reason="csi-sanity is not built: run `make setup`, or set MOORAGE_CSI_SANITY"),
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_driver_conforms(mode: Mode, capsys: pytest.CaptureFixture[str]) -> None:
    if not mode.offered:
        pytest.skip(f"this release has no backend {mode.name}")
    suite = binary()
    assert suite is not None
    outcome = run(mode, suite)
    with capsys.disabled():
        print(f"\n{outcome}")  # noqa: T201 - the figure that the suite is run for
    assert outcome.failed == ()
    assert outcome.left == ()
    assert outcome.surprises == ()
    assert outcome.passed > 60
