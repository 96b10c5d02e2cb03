"""Write animations frame by frame, in memory that does not grow with their length.

Pillow's own writers of animations collect all frames, or all that they become in the file, before they write.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from PIL import Image

from onnxfeat.errors import MissingPackageError, PictureError, quote

Format = Literal["gif", "webp", "mp4"]

_MOST = {"gif": 65_535, "webp": 16_383, "mp4": 16_384}  # pixels of a side: 16 bits, 14 bits, libx264's limit
_LEAST_DELAY = 2  # hundredths of a second; browsers take less for nobody's wish, and show the frame for a tenth


_MS = Fraction(1, 1000)
# At rate factor 6 colors are off by 1 level of 255 on average in maps that move, by 3 in noise. No frame waits for
# later ones (zerolatency), else an encoder would hold 60 of them, and there is one for each layer. It still takes 65
# bytes for each pixel, with more references 100. Slower presets take twice the time and make files no smaller.
_X264 = {"crf": "6", "preset": "veryfast", "tune": "zerolatency", "refs": "1"}


class Encoder(Protocol):
    """A file that takes one frame after the other."""

    def add(self, image: Image.Image, duration: float) -> None:
        """Append a frame that is shown for `duration` ms; all have the size of the first."""

    def close(self) -> None:
        """Finish the file."""


def check_format(format_: str) -> None:
    """Raise an error unless animations of this format can be written.

    Raises:
        PictureError: The format is unknown.
        MissingPackageError: It is `mp4`, and PyAV or its H.264 encoder is not installed.
    """
    if format_ not in get_args(Format):
        raise PictureError(f"format {format_!r} is unknown: choose {quote(get_args(Format))}")
    if format_ == "mp4":
        _import_av()


@contextlib.contextmanager
def encoder(path: Path, *, loop: bool = True) -> Iterator[Encoder]:
    """Give an encoder for a file, of the format that its name ends with.

    - `.gif`: frames as palette pictures, pixel for pixel; times in hundredths of a second, 2 or more.
    - `.webp`: frames in any colors, pixel for pixel; times in ms.
    - `.mp4`: H.264 with a color for each pixel (4:4:4), colors right to about 1 level of 255; times in ms. Many
      browsers and phones play 4:2:0 alone, which would mix the colors of neighboring cells; FFmpeg makes that of it.

    Args:
        path: The file, which is made.
        loop: Whether viewers begin again after the last frame; an mp4 can't tell them.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "fade.webp"
        >>> with encoder(path) as file:
        ...     for level in (0, 100, 200):
        ...         file.add(Image.new("RGB", (32, 24), (level, level, level)), 40)
        >>> with Image.open(path) as image:
        ...     image.n_frames, image.size
        (3, (32, 24))
    """
    kinds: dict[str, Callable[[Path, bool], Encoder]] = {".gif": _Gif, ".webp": _WebP, ".mp4": _Mp4}
    file = kinds[path.suffix](path, loop)
    try:
        yield file
    finally:
        file.close()


class _Clock:
    """Whole units of time for durations in ms, so that rounding does not add up."""

    def __init__(self, units: float, least: int) -> None:
        self._units, self._least = units, least  # units in a ms; fewest units of a frame
        self._exact, self._told = 0.0, 0

    def told(self, duration: float) -> int:
        """Return the units of the next frame."""
        self._exact += duration * self._units
        whole = max(round(self._exact) - self._told, self._least)
        self._told += whole
        return whole


class _Sized:
    """The part that all formats share: every frame has the size of the first, and that fits the format."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size: tuple[int, int] | None = None

    def _is_first(self, image: Image.Image) -> bool:
        """Return whether this is the first frame; refuse one of another size."""
        if self._size is None:
            most = _MOST[self._path.suffix[1:]]
            if max(image.size) > most:
                raise PictureError(
                    f"{self._path.name} would be {image.width} x {image.height}, a side of this format has at most "
                    f"{most:,} pixels: arrange as a grid, set a smaller max_belt or zoom, or choose another format"
                )
            self._size = image.size
            return True
        if image.size != self._size:
            raise PictureError(
                f"a frame of {self._path.name} is {image.width} x {image.height}, the first was {self._size[0]} x "
                f"{self._size[1]}: pass pictures of one size, or set the size in the preprocessing"
            )
        return False


class _Gif(_Sized):
    """GIF89a (https://www.w3.org/Graphics/GIF/spec-gif89a.txt), frames compressed by Pillow.

    The file is opened for each frame, as hundreds of layers may be written at once.
    """

    def __init__(self, path: Path, loop: bool) -> None:
        super().__init__(path)
        self._loop = loop
        self._colors = b""
        self._clock = _Clock(0.1, _LEAST_DELAY)

    def add(self, image: Image.Image, duration: float) -> None:
        """Append a palette picture."""
        if image.mode != "P":
            raise PictureError(
                f"{self._path.name} would hold pictures of more than 256 colors, which GIF can't: choose webp or mp4"
            )
        colors = bytes(image.getpalette() or ()).ljust(768, b"\0")
        with self._path.open("ab") as file:
            if self._is_first(image):
                self._colors = colors
                # 0xF7: a global color table of 256 entries, of 8 bits for each of three primaries.
                file.write(b"GIF89a" + _little(image.width, 2) + _little(image.height, 2) + b"\xf7\0\0" + colors)
                if self._loop:  # without end: the Netscape application extension, count 0
                    file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")
            # Graphic control extension: the frame stays (disposal 1), no transparent color.
            file.write(b"!\xf9\x04\x04" + _little(self._clock.told(duration), 2) + b"\0\0")
            descriptor, pixels = _gif_image(image)
            if colors != self._colors:
                descriptor, pixels = descriptor[:-1] + b"\x87", colors + pixels  # a local color table of 256 entries
            file.write(descriptor + pixels)

    def close(self) -> None:
        """Write the trailer."""
        with self._path.open("ab") as file:
            file.write(b";")


def _gif_image(image: Image.Image) -> tuple[bytes, bytes]:
    """Return image descriptor and compressed pixels of a palette picture, as Pillow writes them for a file of one."""
    buffer = io.BytesIO()
    image.save(buffer, "GIF", optimize=False, interlace=False)  # optimized, the palette would lose unused colors
    written = buffer.getvalue()
    start = 13 + 3 * (2 << (written[10] & 7))  # behind the header and its color table
    while written[start] == 0x21:  # extensions: two bytes and a chain of blocks, each with its length before it
        start += 2
        while written[start]:
            start += written[start] + 1
        start += 1
    return written[start : start + 10], written[start + 10 : -1]


class _WebP(_Sized):
    """WebP container (https://developers.google.com/speed/webp/docs/riff_container), frames compressed by Pillow.

    The sizes in the file's head are right after each frame. It is opened anew for each, as that of `_Gif`.
    """

    def __init__(self, path: Path, loop: bool) -> None:
        super().__init__(path)
        self._loop = loop
        self._clock = _Clock(1, 1)

    def add(self, image: Image.Image, duration: float) -> None:
        """Append a picture in any colors."""
        is_first, buffer = self._is_first(image), io.BytesIO()
        # The least effort: more makes belts 5 % smaller in four times the time.
        image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=0, method=0)
        sides = _little(image.width - 1, 3) + _little(image.height - 1, 3)
        if is_first:
            head = _chunk(b"VP8X", b"\x02\0\0\0" + sides)  # 2: animated
            head += _chunk(b"ANIM", bytes(4) + _little(0 if self._loop else 1, 2))
            self._path.write_bytes(b"RIFF" + _little(4 + len(head), 4) + b"WEBP" + head)
        # The picture's own chunks follow the 12 bytes of the file's head. 2: it replaces what was there, unblended.
        frame = bytes(6) + sides + _little(self._clock.told(duration), 3) + b"\x02" + buffer.getvalue()[12:]
        with self._path.open("r+b") as file:
            size = file.seek(0, io.SEEK_END) + file.write(_chunk(b"ANMF", frame))
            if size >= 1 << 32:
                raise PictureError(f"{self._path.name} is larger than a WebP can be (4 GiB): pass fewer frames")
            file.seek(4)
            file.write(_little(size - 8, 4))

    def close(self) -> None:
        """Do nothing: the file is whole after each frame."""


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + _little(len(content), 4) + content + bytes(len(content) % 2)


def _little(number: int, width: int) -> bytes:
    return number.to_bytes(width, "little")


class _Mp4(_Sized):
    """H.264 in MP4, by PyAV."""

    def __init__(self, path: Path, loop: bool) -> None:  # noqa: ARG002  # the format has no place for it
        super().__init__(path)
        self._av = _import_av()
        self._file = path.open("wb")
        self._container = self._av.open(self._file, "w", format="mp4")
        self._stream: Any = None
        self._clock = _Clock(1, 1)
        self._time = 0  # ms
        self._durations: dict[int, int] = {}  # start to duration of the frames that are being encoded

    def add(self, image: Image.Image, duration: float) -> None:
        """Append a picture in any colors."""
        if self._is_first(image):
            self._start(image, duration)
        frame = self._av.VideoFrame.from_image(image.convert("RGB"))
        colors = self._av.video.reformatter
        frame = frame.reformat(
            format="yuv444p", dst_colorspace=colors.Colorspace.ITU709, dst_color_range=colors.ColorRange.MPEG
        )
        frame.pts, frame.time_base = self._time, _MS
        self._durations[self._time] = self._clock.told(duration)
        self._time += self._durations[self._time]
        self._write(frame)

    def _start(self, image: Image.Image, duration: float) -> None:
        # The rate sets the level that a player must be capable of; the times are those of the frames.
        rate = Fraction(1000 / duration).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options=_X264)
        self._stream.width, self._stream.height, self._stream.pix_fmt = image.width, image.height, "yuv444p"
        context = self._stream.codec_context
        context.time_base = _MS
        # ITU-R BT.709 is 1 in each of these tables of ITU-T H.273, and so are video levels: players need not guess.
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1

    def _write(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is in the encoder, and the table of contents."""
        with self._file:
            if self._stream is not None:
                self._write(None)
            self._container.close()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(f'writing an mp4 needs PyAV ({error}): pip install "onnxfeat[video]"') from error
    if "libx264" not in av.codecs_available:
        raise MissingPackageError(
            'this PyAV was built without libx264, which writes mp4: pip install --force-reinstall "onnxfeat[video]"'
        )
    return av
