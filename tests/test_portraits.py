"""Pictures of photographs: as large as a page needs, from a file that is decoded no larger than that."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.picture_files import converted
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import Features, ProviderChoice
from onnxfeat.report.contents import Photograph
from onnxfeat.report.portraits import portrait_of

LONGEST = 960


def portrait(picture: Any) -> Photograph:
    run = Features(
        maps={},
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        preprocessing=Preprocessing(),
        preprocessing_source="model",
        seconds=0.5,
        pictures=("picture",),
        preprocessed=(False,),
        photographs=(picture,),
        model="net.onnx",
        sha256="0" * 64,
    )
    return portrait_of(run, 0)


def waves(width: int, height: int) -> Image.Image:
    rows, columns = np.ogrid[:height, :width]
    shades = [np.sin(rows / 50 + place) + np.cos(columns / 70 - place) + 0 * rows * columns for place in range(3)]
    return Image.fromarray((np.stack(shades, axis=2) * 60 + 127).astype(np.uint8))


def shown(found: Photograph) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(found.picture)).convert("RGB"), np.float64)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the widths and heights at which pictures are decoded from now on."""
    sizes = []

    def seen(image: Image.Image, *given: Any) -> Image.Image:
        sizes.append(image.size)
        return converted(image, *given)

    monkeypatch.setattr("onnxfeat.report.portraits.converted", seen)
    return sizes


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (1000, 750)),
        ((3000, 4001), (750, 1001)),
        ((3839, 100), (1920, 50)),
        ((7700, 9), (963, 2)),
        ((1919, 1500), (1919, 1500)),
        ((700, 500), (700, 500)),
    ],
)
def test_a_jpeg_file_is_decoded_at_the_size_that_is_enough_and_told_at_its_own(
    tmp_path: Path, decoded: list[tuple[int, int]], size: tuple[int, int], expected: tuple[int, int], mode: str
) -> None:
    path = tmp_path / "photograph.jpg"
    waves(*size).convert(mode).save(path, quality=95)
    found = portrait(path)
    assert decoded == [expected]
    assert max(expected) >= min(LONGEST, max(size))
    assert found.size == size[::-1]
    # Pillow, with all pixels decoded.
    whole = Image.open(path).convert("RGB")
    factor = min(LONGEST / max(size), 1)
    wanted = whole.resize([max(round(side * factor), 1) for side in size], Image.Resampling.LANCZOS)
    assert shown(found).shape == np.asarray(wanted).shape
    assert np.abs(shown(found) - np.asarray(wanted, np.float64)).mean() < 3


def test_other_pictures_are_decoded_whole(tmp_path: Path, decoded: list[tuple[int, int]]) -> None:
    image = waves(2400, 1000)
    path, array = tmp_path / "photograph.png", tmp_path / "photograph.npy"
    image.save(path)
    np.save(array, np.asarray(image))
    found = [portrait(picture) for picture in (path, array, image, np.asarray(image))]
    assert decoded == [(2400, 1000)] * 4
    assert {one.size for one in found} == {(1000, 2400)}
    assert len({one.picture for one in found}) == 1
    assert image.size == (2400, 1000)


def test_a_jpeg_image_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photograph.jpg"
    waves(4000, 3000).save(path)
    with Image.open(path) as image:
        assert portrait(image).size == (3000, 4000)
        assert image.size == (4000, 3000)


def test_a_damaged_or_a_huge_jpeg_file_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photograph.jpg"
    waves(2400, 1000).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PictureError, match=r"photograph.jpg can't be read .*: pass an undamaged PNG"):
        portrait(path)
    path.write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 * 1000)  # though what is decoded would be less
    with pytest.raises(PictureError, match="too large to be decoded safely"):
        portrait(path)
