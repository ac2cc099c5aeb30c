"""Images as people have them: broken in any way, in archives, and with 16 bits."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.utils.errors import DataError, ImageError

VIEW = st.View((3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def _encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def _broken_chunk() -> bytes:
    """A PNG whose data go on in a chunk without a name, for which PIL raises SyntaxError."""
    png = _encoded("PNG")
    at = png.index(b"IDAT")
    (size,) = struct.unpack(">I", png[at - 4 : at])
    content = png[at + 4 : at + 4 + size]
    half = size // 2
    rest = struct.pack(">I", size - half) + b"\xa9\x8a\xbc\x07" + content[half:] + bytes(4)
    return png[: at - 4] + _chunk(b"IDAT", content[:half]) + rest


def _bomb() -> bytes:
    """A PNG that says it has 10¹⁰ pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    )


BROKEN: dict[str, Callable[[], bytes]] = {
    "broken chunk": _broken_chunk,
    "half a PNG": lambda: _encoded("PNG")[:700],
    "half a JPEG": lambda: _encoded("JPEG")[:300],
    "empty": lambda: b"",
    "text": lambda: b"<html>404</html>",
    "too large": _bomb,
    "header only": lambda: _encoded("PNG")[:20],
}


def _images(root: Path, extra: dict[str, bytes], *, packed: bool) -> Path:
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    for name, content in extra.items():
        (root / name).write_bytes(content)
    if not packed:
        return root
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        tar.add(root, ".")
    return root.with_suffix(".tar")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_a_decoder_raises(
    kind: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _images(tmp_path / "x", {"ant/broken.png": BROKEN[kind]()}, packed=packed)
    parts = {"train": {"images": 2}, "val": {"images": 2}}
    where = f"ant/broken.png in {root}" if packed else f"{root}/ant/broken.png"
    data = st.load_data("", root=root, **parts)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"broken\.png") as stopped:
        [list(split.batches([VIEW])) for split in (data.train, data.val, data.test)]
    assert where in str(stopped.value).replace("./ant", "ant")
    assert "unreadable: skip" in str(stopped.value)
    data = st.load_data("", root=root, unreadable="skip", **parts)  # type: ignore[arg-type]
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 2, 2]
    for split in (data.train, data.val, data.test):
        assert sum(len(batch) for batch in split.batches([VIEW])) == 2
    said = capsys.readouterr().err.replace("\n", "").replace("./ant", "ant")
    assert where.replace(" ", "") in said.replace(" ", "")


def test_broken_images_of_shards_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("1.png", _broken_chunk()), ("1.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match="wants 1 images, but only 0"):
        st.load_data("wds/", root=tmp_path, train={"images": 1}, unreadable="skip")


class _Own:
    """A data set of one's own, which decodes late and has a mistake in it."""

    def __init__(self, *images: object) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        if isinstance(image, bytes):
            return Image.open(io.BytesIO(image)), 0
        return image, 0  # type: ignore[return-value]


def _split(*images: object) -> Split:
    return Split("val", _Own(*images), range(len(images)), "mine")


@pytest.mark.parametrize("broken", [_broken_chunk(), KeyError("x"), RuntimeError("codec")])
def test_data_sets_of_ones_own(broken: object) -> None:
    split = _split(Image.new("RGB", (8, 8)), broken)
    with pytest.raises(ImageError, match=r"Image 1 of the val split \(mine\) cannot be read"):
        list(split.batches([VIEW]))


def test_a_mode_that_pil_does_not_convert() -> None:
    with pytest.raises(ImageError, match=r"Image 0 of .* cannot be read: ValueError"):
        list(_split(Image.new("La", (8, 8))).batches([VIEW]))


def test_what_is_no_image() -> None:
    with pytest.raises(DataError, match="gives ndarray for an image"):
        list(_split(np.zeros((8, 8))).batches([VIEW]))


def _values(split: Split) -> np.ndarray:
    (batch,) = split.batches([VIEW])
    return (batch.images[0][:, 0] * 255).round().numpy()


GREYS = np.linspace(0, 65535, 64).reshape(8, 8)


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "a file"])
def test_sixteen_bits_are_scaled(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "a file":
        file = io.BytesIO()
        Image.fromarray(GREYS.astype(np.uint16)).save(file, "PNG")
        split = _split(file.getvalue(), file.getvalue())
    elif kind == "I":
        split = _split(Image.fromarray(GREYS.astype(np.int32)))
    else:
        order = ">" if kind == "I;16B" else "<"
        image = Image.frombytes(kind, (8, 8), GREYS.astype(f"{order}u2").tobytes())
        split = _split(image)
    found = _values(split)
    _values(split.take(1))  # is said once
    assert np.abs(found - np.floor(GREYS) / 257).max() <= 0.51
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("images of 16 bits, such as image 0") == 1


def test_eight_bits_kept_in_sixteen_stay(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(64).reshape(8, 8) * 4
    assert (_values(_split(Image.fromarray(values.astype(np.uint16)))) == values).all()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("values", [GREYS.astype(np.float32) / 65535, GREYS.astype(np.int32) - 9])
def test_numbers_without_a_white(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="nobody knows what is white"):
        _values(_split(Image.fromarray(values)))
