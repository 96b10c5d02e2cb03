"""Give the frames of an animation or video one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from onnxfeat.errors import MissingPackageError, PictureError
from onnxfeat.picture_files import Picture, readable_file, refuse_bomb

# Suffix to FFmpeg's demuxer. What else a file's content may claim to be is not tried: playlists and the like make
# FFmpeg open other files and addresses.
_DEMUXERS = {
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
}
VIDEO_SUFFIXES = tuple(_DEMUXERS)
"""Ends of file names, in lower case, of which a file is read as a video."""

# Formats whose pictures follow each other in time; those of others are pages (TIFF) or views (MPO).
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_WANTED = f"GIF, WebP or PNG file, or a video ({', '.join(VIDEO_SUFFIXES)})"
_RATE = 25  # frames a second of a video that does not tell
_SMALLER = "pass a video of a smaller size"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One picture of a run.

    Attributes:
        name: What it is called: `cat.jpg`, `picture_2`, or `clip.gif[12]` for the frame of that index.
        picture: The picture itself.
        duration: How long it is shown, in ms; None if it is no frame, or nobody says.
    """

    name: str
    picture: Picture
    duration: float | None = None


class _Decoded(NamedTuple):
    image: Image.Image
    duration: float | None  # ms


class Frames:
    """The frames of an animation or video, decoded one by one each time that they are asked for.

    GIF, WebP, PNG and AVIF are read by Pillow, mp4, m4v, mov, mkv, webm and avi by PyAV (extra `video`). Frames are as
    viewers show them: what a frame leaves unchanged is there, transparent parts are white, videos are turned upright.
    A still picture has one frame: itself.

    Args:
        path: The file.
        every: Take only the first of this many frames; its duration is that of all of them.
        limit: Most frames to take; None takes all.

    Attributes:
        path: The file.
        every: As given.
        limit: As given.
        size: Width and height of every frame, in pixels.
        count: Number of frames that will come, as the file's header tells; None where it does not.

    Raises:
        PictureError: The file is missing, no picture or video, damaged or too large, or a number is below 1. Damage
            behind the header shows when the frames are decoded.
        MissingPackageError: It is a video, and PyAV is not installed.

    Example:
        >>> import tempfile
        >>> clip = Path(tempfile.mkdtemp()) / "clip.gif"
        >>> shades = [Image.new("L", (32, 24), level) for level in (0, 100, 200)]
        >>> shades[0].save(clip, save_all=True, append_images=shades[1:], duration=40)
        >>> frames = Frames(clip, every=2)
        >>> frames.count, frames.size, [image.getpixel((0, 0)) for image in frames]
        (2, (32, 24), [(0, 0, 0), (200, 200, 200)])
    """

    def __init__(self, path: str | Path, *, every: int = 1, limit: int | None = None) -> None:
        for name, number in (("every", every), ("limit", limit)):
            if number is not None and number < 1:
                raise PictureError(f"{name} is {number}, a number of frames: pass 1 or more")
        self.path, self.every, self.limit = Path(path), every, limit
        header = self._video_header if self.is_video else self._animation_header
        with readable_file(self.path, _WANTED):
            self.size, count = header()
        if count is not None:
            count = -(-count // every)
            count = count if limit is None else min(count, limit)
        self.count: int | None = count

    @property
    def is_video(self) -> bool:
        """Whether the file is read by PyAV, as its name ends like that of a video."""
        return self.path.suffix.lower() in _DEMUXERS

    def __repr__(self) -> str:
        """Return path, number and size."""
        return f"Frames({str(self.path)!r}, count={self.count}, size={self.size})"

    def __iter__(self) -> Iterator[Image.Image]:
        """Decode the frames, from the first on."""
        for frame in self.frames():
            yield cast(Image.Image, frame.picture)

    def frames(self) -> Iterator[Frame]:
        """Decode the frames, from the first on, with names and durations.

        Raises:
            PictureError: A frame is damaged, or of another size than the first.
        """
        position = 0
        with contextlib.closing(self._decoded()) as decoded:
            while self.limit is None or position < self.limit:
                # Entered anew for each frame: what it does to the warnings must not last while the caller works.
                with readable_file(self.path, _WANTED):
                    found = self._next(decoded)
                if found is None:
                    break
                name = f"{self.path.name}[{position * self.every}]"
                if found.image.size != self.size:
                    raise PictureError(
                        f"{name} in {self.path} is {_by(found.image.size)}, the first frame {_by(self.size)}: pass a "
                        f"file whose frames share a size"
                    )
                yield Frame(name=name, picture=found.image, duration=found.duration)
                position += 1
        if not position:
            raise PictureError(f"{self.path} holds no frame that can be decoded: pass an undamaged {_WANTED}")

    def _next(self, decoded: Generator[_Decoded, None, None]) -> _Decoded | None:
        """Return the next frame that is wanted, shown as long as those that are left out behind it as well."""
        first = next(decoded, None)
        if first is None:
            return None
        durations = [first.duration]
        for _ in range(self.every - 1):
            skipped = next(decoded, None)
            if skipped is None:
                break
            durations.append(skipped.duration)
        known = [duration for duration in durations if duration is not None]
        return _Decoded(first.image, sum(known) if len(known) == len(durations) else None)

    def _decoded(self) -> Generator[_Decoded, None, None]:
        return self._video_frames() if self.is_video else self._animation_frames()

    def _animation_header(self) -> tuple[tuple[int, int], int]:
        with Image.open(self.path) as file:
            return file.size, max(len(_positions(file)), 1)

    def _animation_frames(self) -> Generator[_Decoded, None, None]:
        with Image.open(self.path) as file:
            positions = _positions(file)
            if len(positions) < 2:
                file.load()
                yield _Decoded(file.copy(), None)  # as the picture itself would be taken, of whatever mode
                return
            for position in positions:
                file.seek(position)
                file.load()  # WebP tells the duration only then
                yield _Decoded(_opaque(file), float(file.info.get("duration", 0)) or None)

    def _video_header(self) -> tuple[tuple[int, int], int | None]:
        with self._open_video() as (_, stream):
            count = stream.frames or None
        # Upright, as the frames will be: what turns them is written on the frames, not in the header.
        with contextlib.closing(self._video_frames()) as decoded:
            found = next(decoded, None)
        if found is None:
            raise ValueError("it has no frame")
        return found.image.size, count

    def _video_frames(self) -> Generator[_Decoded, None, None]:
        with self._open_video() as (container, stream):
            usual = 1000 / (stream.average_rate or stream.guessed_rate or _RATE)
            for frame in container.decode(stream):
                refuse_bomb((frame.height, frame.width), f"{self.path} is too large to be decoded safely", _SMALLER)
                shown = (frame.duration or 0) * (frame.time_base or Fraction(0)) * 1000
                yield _Decoded(_upright(frame), float(shown or usual))

    @contextlib.contextmanager
    def _open_video(self) -> Iterator[tuple[Any, Any]]:
        """Open the file with PyAV, as a container and its first video stream."""
        av = _import_av(self.path)
        # A file, not its name, which FFmpeg may take for an address or a list of files.
        with self.path.open("rb") as file, av.open(file, format=_DEMUXERS[self.path.suffix.lower()]) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            sides = (stream.codec_context.height, stream.codec_context.width)
            refuse_bomb(sides, f"{self.path} is too large to be decoded safely", _SMALLER)
            stream.thread_type = "AUTO"
            yield container, stream


def _positions(file: Image.Image) -> range:
    """Return the positions of the frames of an open file; none where it is a still picture."""
    if file.format not in _ANIMATED or not getattr(file, "is_animated", False):
        return range(0)
    # The picture that an animated PNG gives to viewers that know no animation may be none of its frames.
    return range(1 if file.info.get("default_image") else 0, cast(Any, file).n_frames)


def _opaque(image: Image.Image) -> Image.Image:
    """Return a frame as RGB, with white where it is transparent: its colors there change from frame to frame."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def _upright(frame: Any) -> Image.Image:
    """Return a video's frame as a picture, turned as its display matrix says: phones film sideways."""
    image: Image.Image = frame.to_image()
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    turned = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(turned[turns]) if turns else image


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _import_av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(
            f'{path} is a video, which needs PyAV to be read ({error}): pip install "onnxfeat[video]"'
        ) from error
    return av
