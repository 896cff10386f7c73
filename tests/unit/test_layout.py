"""The folders operator/ and csi/ must stay plain folders: a package named operator shadows the standard library's."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN_FOLDERS = ["operator", "csi", "manifests", "charts"]


@pytest.mark.parametrize("folder", PLAIN_FOLDERS)
def test_no_package_lies_directly_under_a_top_level_folder(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("code", ["import collections", "import operator; assert operator.itemgetter"])
def test_the_standard_library_is_found_from_the_root(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
