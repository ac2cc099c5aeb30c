from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import optuna_stitch as st
from optuna_stitch.utils.errors import ConfigError, FitError, MatchError


def _named(parent: st.Parent, names: tuple[str, ...] | None) -> st.Parent:
    return replace(parent, class_names=names)


def test_parents_say_whether_they_have_one_job_or_two(
    a: st.Parent, b: st.Parent, loops: st.Parent
) -> None:
    assert st.stitch(a, loops, points="blocks").two_jobs  # 10 classes, and 2
    assert a.class_names == b.class_names == tuple("0123456789")  # of the data that trained them
    assert not st.stitch(a, b, points="blocks").two_jobs
    assert not st.stitch(a, _named(b, None), points="blocks").two_jobs
    others = _named(b, tuple("abcdefghij"))
    assert st.stitch(a, others, points="blocks").two_jobs
    assert not st.stitch(a, others, points="blocks", outputs=["a", "b"]).two_jobs
    assert st.stitch(a, b, points="blocks", outputs=["both"]).two_jobs  # on purpose
    with pytest.raises(MatchError, match=r"label 0 is 0 .* and 9 .*can be stitched as one job"):
        st.stitch(a, _named(b, tuple("9876543210")))
    with pytest.raises(MatchError, match="they have two jobs"):
        st.stitch(a, loops, outputs=["a", "b", "ensemble"])
    with pytest.raises(ConfigError, match="stands alone"):
        st.stitch(a, b, outputs=["a", "both"])
    with pytest.raises(ConfigError, match="no output 'c'; there are a, b, ensemble"):
        st.stitch(a, b, outputs=["a", "c"])


def test_two_jobs_are_remembered(two_jobs: st.Supernetwork, tmp_path: Path) -> None:
    two_jobs.save(tmp_path)
    loaded = st.Supernetwork.load(tmp_path)
    assert loaded.two_jobs
    assert loaded.content_hash() == two_jobs.content_hash()
    assert loaded.b.class_names == ("no loop", "loop")
    assert loaded.keep([0]).two_jobs
    assert loaded.supergraph.outputs == ("both",)


def test_each_parent_teaches_its_own_answer(
    a: st.Parent, loops: st.Parent, pair: st.DataPair
) -> None:
    made = st.stitch(a, loops, points="blocks")
    made.fit(pair.train, images=60)
    tuned = made.tune(pair.train.take(60), steps=6, networks=2, batch_size=16)
    assert [one.switch for one in tuned] == [switch.name for switch in made.switches]
    assert any(one.after < one.before for one in tuned)
    with pytest.raises(FitError, match="Leave `task` out"):
        made.tune(pair.train.take(60), steps=1, task=0.5)
