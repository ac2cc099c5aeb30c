from __future__ import annotations

from pathlib import Path

import pytest

import optuna_stitch as st
from optuna_stitch.utils.errors import CaptureError


def test_what_is_measured_is_kept_by_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise CaptureError("measured again")

    monkeypatch.setenv("OPTUNA_STITCH_CACHE", str(tmp_path))
    first = st.load_parent("test_resnet").graph()
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 1
    with monkeypatch.context() as patched:
        patched.setattr("optuna_stitch.models.graph.measure", fail)
        again = st.load_parent("test_resnet").graph()
        assert again.points == first.points
        assert again.costs == first.costs
        assert again.excluded == first.excluded
        with pytest.raises(CaptureError, match="measured again"):
            st.load_parent("test_resnet", num_classes=3).graph()
    kept[0].write_text("broken")
    assert st.load_parent("test_resnet").graph().points == first.points


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    monkeypatch.setenv("OPTUNA_STITCH_CACHE", str(tmp_path / "cache"))
    graph = st.load_parent("test_resnet", num_classes=10, input_size=32).graph()
    assert graph.classes == 10
    said = capsys.readouterr().err
    assert "is not kept for the next time" in said
    assert "$OPTUNA_STITCH_CACHE" in said
