from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optuna_stitch as st
from optuna_stitch.utils.errors import DataError

PARTS = {"train": {"images": 6}, "val": {"images": 4}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with two labels each, in a CSV file."""
    (tmp_path / "images").mkdir()
    lines = ["image,species,health"]
    for number in range(15):
        pixels = np.full((8, 8, 3), 16 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,{'oak' if number % 3 else 'ash'},{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def _load(folder: Path, column: str | None, **options: object) -> st.Data:
    settings = {"root": folder / "images", "labels": folder / "labels.csv", **PARTS, **options}
    return st.load_data("", column=column, **settings)  # type: ignore[arg-type]


def test_a_table_has_two_labels_for_every_image(folder: Path) -> None:
    pair = st.DataPair(_load(folder, "species"), _load(folder, "health"))
    assert pair.a.class_names == ("ash", "oak")
    assert pair.b.class_names == ("0", "1")
    for split in (pair.train, pair.val, pair.test):
        for position in range(len(split.a)):
            number = int(Path(split.a.place_of(position)).stem)
            assert split.b.place_of(position) == split.a.place_of(position)
            assert split.a.read(position)[1] == (number % 3 > 0)
            assert split.b.read(position)[1] == number % 2
    assert len(pair.train.together) == 6  # each image once
    assert pair.a.train.fingerprint != pair.b.train.fingerprint


def test_images_of_different_data_take_turns(folder: Path, data: st.Data) -> None:
    pair = st.DataPair(_load(folder, "species"), data)
    together = pair.train.together
    assert len(together) == 306
    assert [together.read(n)[0].mode for n in range(4)] == ["RGB", "L", "RGB", "L"]
    assert pair.train.take(2).together.indices == range(4)


def test_what_one_job_holds_back_the_other_may_not_use(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a's train split and in b's (val|test) split, such as"):
        st.DataPair(_load(folder, "species"), _load(folder, "health", seed=1))


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ("x.png,oak,", "health", r"1 of 16 images .* 'health', the first is x.png in line 17"),
        ("x.png,oak,1", None, "2 columns of labels, species, health; say which"),
        ("x.png,oak,1", "weight", "no column 'weight' of labels; it has species, health"),
    ],
)
def test_wrong_tables_are_refused(folder: Path, line: str, column: str | None, said: str) -> None:
    with (folder / "labels.csv").open("a") as file:
        file.write(f"\n{line}")
    with pytest.raises(DataError, match=said):
        _load(folder, column)


def test_a_view_that_images_cannot_fill_is_refused(
    two_jobs: st.Supernetwork, pair: st.DataPair
) -> None:
    views = {"a": two_jobs.views[0], "b": st.View((4, 32, 32))}
    with pytest.raises(DataError, match=r"Parent b sees images of 4 channels .* are L"):
        pair.val.check_views(views)  # type: ignore[arg-type]
