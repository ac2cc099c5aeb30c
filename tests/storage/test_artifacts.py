from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest

from optuna_stitch.storage.artifacts import download_files, open_artifact_store, upload_files
from optuna_stitch.utils.errors import ArtifactError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "from" / name for name in ("weights.safetensors", "about.json")]
    made[0].parent.mkdir()
    for path in made:
        path.write_bytes(path.name.encode() * 1000)
    return made


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(study_name="test")


def _round_trip(study: optuna.Study, place: str, files: list[Path], to: Path) -> None:
    upload_files(study, open_artifact_store(place), files)
    download_files(study, open_artifact_store(place), to)
    assert {path.name for path in to.iterdir()} == {path.name for path in files}
    for path in files:
        assert (to / path.name).read_bytes() == path.read_bytes()


def test_files_come_back_from_a_folder(
    study: optuna.Study, files: list[Path], tmp_path: Path
) -> None:
    _round_trip(study, str(tmp_path / "deep" / "store"), files, tmp_path / "to")


def test_files_come_back_from_s3(
    study: optuna.Study, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="networks")
        _round_trip(study, "s3://networks", files, tmp_path / "to")
        keys = boto3.client("s3").list_objects_v2(Bucket="networks")["Contents"]
        assert len(keys) == 2


def test_what_is_missing_is_said(
    study: optuna.Study, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_artifact_store(str(tmp_path / "store"))
    with pytest.raises(ArtifactError, match="has no supernetwork in an artifact store"):
        download_files(study, store, tmp_path / "to")
    upload_files(study, store, files)
    elsewhere = open_artifact_store(str(tmp_path / "elsewhere"))
    with pytest.raises(ArtifactError, match=r"does not have weights\.safetensors"):
        download_files(study, elsewhere, tmp_path / "to")
    assert not (tmp_path / "to").exists() or not any((tmp_path / "to").iterdir())
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArtifactError, match=r"optuna-stitch\[s3\]"):
        open_artifact_store("s3://bucket")
