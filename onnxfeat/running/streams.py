"""Give the pictures of a run in their order, and its maps in parts, as often as they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.picture_files import Picture
from onnxfeat.records import Features
from onnxfeat.running.frames import Frame, Frames
from onnxfeat.running.images import name_of

Batch = Iterable[Picture | Frames]
"""Pictures that can be had any number of times; the frames of a file are one by one among them."""
Pictures = Picture | Frames | Batch
"""One picture or many: a picture, the frames of a file, or anything that gives these anew each time it is iterated."""


def batch_of(pictures: Pictures) -> Batch:
    """Return one picture or many as something to iterate over, any number of times; nothing is read.

    Raises:
        PictureError: There is none, or they could be had only once.
    """
    if isinstance(pictures, str | Path | Image.Image | np.ndarray | Frames) or not isinstance(pictures, Iterable):
        return [cast(Picture, pictures)]
    if isinstance(pictures, Iterator):
        raise PictureError(
            "the pictures are an iterator, which gives them only once, and a run may need them several times: pass a "
            "list, or Frames of a file"
        )
    if isinstance(pictures, Sized) and not len(pictures):
        refuse_none()
    return pictures


def refuse_none() -> NoReturn:
    """Raise the `PictureError` for a run without a picture."""
    raise PictureError("no picture was passed: pass one or more")


def each(batch: Batch) -> Iterator[Frame]:
    """Yield every picture, each frame of a file as one.

    Example:
        >>> [frame.name for frame in each(["a/cat.jpg", np.zeros((8, 8, 3), np.uint8)])]
        ['cat.jpg', 'picture_2']
    """
    for number, picture in enumerate(batch, start=1):
        if isinstance(picture, Frames):
            yield from picture.frames()
        else:
            yield Frame(name=name_of(picture, number), picture=picture)


def one_of_each_size(batch: Batch) -> Iterator[Picture]:
    """Yield the pictures, and of the frames of a file, which share a size, only one of that size.

    The one is blank: a whole video need not be decoded to know the shape of the model's input.
    """
    for picture in batch:
        yield Image.new("RGB", picture.size) if isinstance(picture, Frames) else picture


class Stream:
    """Maps in parts, computed anew each time that they are iterated over.

    Attributes:
        durations: Position of a picture to how long it is shown, in ms, of those that came and are frames of a file.
    """

    def __init__(
        self,
        run: Callable[[Batch, dict[int, float]], Iterator[Features]],
        batch: Batch,
    ) -> None:
        self._run, self._batch = run, batch
        self.durations: dict[int, float] = {}

    def __iter__(self) -> Iterator[Features]:
        """Run the model on the first picture, then on the next."""
        return self._run(self._batch, self.durations)
