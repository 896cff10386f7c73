"""Images without a registry: what containerd's importer reads."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.harness import images, product_image
from tests.harness.errors import MissingError


def _archive() -> bytes:
    return images.docker_archive(
        ["tool:1"], files={"bin/tool": b"#!"}, links={"bin/alias": "tool"}, entrypoint=("tool", "x")
    )


def test_an_archive_names_its_image_and_its_layer_by_their_hashes() -> None:
    with tarfile.open(fileobj=io.BytesIO(_archive())) as tar:
        content = {member.name: _read(tar, member) for member in tar.getmembers()}
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest["RepoTags"] == ["tool:1"]
    config = json.loads(content[manifest["Config"]])
    layer = content[manifest["Layers"][0]]
    assert manifest["Config"] == f"{hashlib.sha256(content[manifest['Config']]).hexdigest()}.json"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"]["Cmd"] == ["tool", "x"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getmember("bin/tool").mode == 0o755
        assert tar.getmember("bin/alias").linkname == "tool"
        assert tar.getmember("tmp").mode == 0o1777


def test_the_same_input_gives_the_same_bytes() -> None:
    assert _archive() == _archive()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in product_image.INPUTS:
        file = tmp_path / name
        if name in {"operator", "csi"}:
            file = file / "package" / "module.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('version = "1.2.3"\n')
    monkeypatch.setattr(product_image, "ROOT", tmp_path)
    return tmp_path


def test_the_image_is_named_by_all_that_it_is_made_of(tree: Path) -> None:
    digest = product_image.digest_of_inputs()
    assert product_image.digest_of_inputs() == digest
    (tree / "csi" / "package" / "__pycache__").mkdir()
    (tree / "csi" / "package" / "__pycache__" / "module.pyc").touch()
    (tree / "unrelated").touch()
    assert product_image.digest_of_inputs() == digest
    for name in ("Containerfile", "requirements/image.txt", "operator/package/module.py"):
        (tree / name).write_text(f"changed {name}")
        changed = product_image.digest_of_inputs()
        assert changed != digest
        digest = changed


def test_a_missing_input_is_named(tree: Path) -> None:
    (tree / "LICENSE").unlink()
    with pytest.raises(MissingError, match="LICENSE is missing"):
        product_image.digest_of_inputs()


def test_the_settings_of_pip_are_read_and_the_environment_wins() -> None:
    listed = (
        ":env:.find-links='/wheels'\n:env:.cert='/b.crt'\nglobal.cert='/a.crt'\n"
        "install.no-compile='1'\nfreeze.timeout='10'\n"
    )
    assert product_image.parse_pip_settings(listed) == {"cert": "/b.crt", "find-links": "/wheels", "no-compile": "1"}
