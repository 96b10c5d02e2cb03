"""Do what the commands that show maps share: find the pictures, prove the model, tell how the run will go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfeat.errors import PictureError
from onnxfeat.terminal import say, stages
from onnxfeat.verdicts import few

if TYPE_CHECKING:
    from onnxfeat.findings import Check, Plan
    from onnxfeat.running.extractor import FeatureExtractor


def still_pictures(paths: Sequence[Path], *, quiet: bool, of_video: str, of_frames: str) -> list[Path]:
    """Return files as pictures without motion; of those that move the first frame is taken, which is told.

    Args:
        paths: The files.
        quiet: Whether to say nothing.
        of_video: What to do to see the frames of a video, for the error.
        of_frames: What becomes of other files that have several.

    Raises:
        PictureError: One is a video.

    Example:
        >>> cat = Path("models/pictures/chelsea.png")
        >>> still_pictures([cat], quiet=True, of_video="draw its frames", of_frames="the first is drawn") == [cat]
        True
    """
    from onnxfeat.running.frames import VIDEO_SUFFIXES, Frames

    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if videos:
        raise PictureError(f"{videos[0]} is a video: {of_video}, or pass a picture")
    moving = [path.name for path in paths if path.suffix.lower() == ".gif" and Frames(path).count != 1]
    if moving:
        say(quiet, f"{of_frames}: {few(moving)}")
    return list(paths)


def proven(model: Path, picture: Any, *, quiet: bool, settings: Mapping[str, Any]) -> Check:
    """Return what `check` finds on a picture, and show its stages meanwhile.

    Args:
        model: The model.
        picture: The picture.
        quiet: Whether to show nothing.
        settings: What the `FeatureExtractor` was made with.

    Raises:
        OnnxfeatError: The check can't be made.
    """
    from onnxfeat.running.proof import check

    with stages(quiet) as tell:
        return check(model, picture, progress=tell, **settings)


def planned(extractor: FeatureExtractor, pictures: Sequence[Any], *, quiet: bool) -> Plan:
    """Return how a run will go, and say so if it takes several passes.

    Raises:
        OnnxfeatError: It can't go.
    """
    from onnxfeat.running.planning import readable

    plan = extractor.plan(pictures)
    if len(plan.passes) > 1:
        say(
            quiet,
            f"the maps of a picture take {readable(plan.total)}: drawn in {len(plan.passes)} passes within "
            f"{readable(plan.max_bytes)}",
        )
    return plan
