"""Draw feature maps as matplotlib figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from onnxfeat.errors import PictureError
from onnxfeat.pictures import MAX_BELT, belt, drawable, fits_belt, grid, grid_columns
from onnxfeat.records import FeatureMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 20.0  # inches, of the figure in F. Chollet, "Deep Learning with Python", section 5.4.1
_LEAST_HEIGHT = 0.02  # inches: two pixels at 100 dpi; matplotlib can't save a figure of less than one


def plot(
    feature_map: FeatureMap,
    *,
    index: int = 0,
    ax: Axes | None = None,
    cmap: str = "viridis",
    max_belt: int = MAX_BELT,
) -> Figure:
    """Draw the channels of one layer side by side, titled with the layer's name; return the figure.

    A new figure is 20 inches wide and 20/k high for k channels, at least 0.02. A layer whose belt were wider than
    `max_belt` pixels is drawn as a grid, and the title says so. Gray levels are those of `normalize`, 0..255 from end
    to end of the colormap.

    Args:
        feature_map: The maps, with two spatial axes.
        index: Which picture of the batch.
        ax: Axes to draw in; None makes a figure with pyplot, to be shown with `pyplot.show()` and closed by the caller.
        cmap: Name of a matplotlib colormap.
        max_belt: Largest width of a belt in pixels.

    Raises:
        PictureError: The map has no two spatial axes, `index` is outside the batch, the colormap is unknown, or `ax`
            was removed from its figure.

    Example:
        >>> from onnxfeat import FeatureExtractor
        >>> extractor = FeatureExtractor("models/shapes_reference_layers.onnx", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> figure = plot(features["conv2d"])
        >>> figure.get_size_inches().tolist()
        [20.0, 2.5]
        >>> import matplotlib.pyplot
        >>> matplotlib.pyplot.close(figure)
    """
    import matplotlib

    if not isinstance(feature_map, FeatureMap):
        raise PictureError(
            f"{type(feature_map).__name__} is no feature map: pass one of a layer, as features['conv2d']"
        )
    if cmap not in matplotlib.colormaps:
        raise PictureError(f"matplotlib has no colormap {cmap!r}: `list(matplotlib.colormaps)` names them")
    maps = drawable(feature_map)
    _, channels, height, width = maps.shape
    if fits_belt(maps, max_belt):
        tiled, inches, title = belt(maps, index), _WIDTH / channels, feature_map.name
    else:
        columns = grid_columns(channels, height, width)
        tiled = grid(maps, index, columns=columns)
        inches = _WIDTH * tiled.shape[0] / tiled.shape[1]
        title = f"{feature_map.name} ({channels} channels in rows of {columns})"
    if ax is not None and ax.get_figure() is None:
        raise PictureError("the axes belong to no figure any more: pass axes that were not removed")
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(_WIDTH, max(inches, _LEAST_HEIGHT)))
        ax = figure.add_subplot()
    ax.set_title(title, parse_math=False)  # a layer's name may hold a dollar sign
    ax.grid(False)
    ax.imshow(tiled, aspect="auto", cmap=cmap, vmin=0, vmax=255)
    return cast("Figure", ax.get_figure(root=True))
