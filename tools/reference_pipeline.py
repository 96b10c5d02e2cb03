"""Draw a Keras model's feature maps the way people do it today: plain Keras, NumPy and matplotlib.

The pipeline of F. Chollet, "Deep Learning with Python", section 5.4.1, as a script of its own that uses nothing of
onnxfeat: what `onnxfeat draw` reproduces to the pixel, and what `tools/benchmark.py` measures it against.

    python tools/reference_pipeline.py MODEL.keras PICTURE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot


def main(model_path: str, picture: str, folder: str) -> None:
    """Write one figure for each layer with spatial axes."""
    model = keras.models.load_model(model_path)
    image = keras.utils.load_img(picture, target_size=model.input_shape[1:3])
    tensor = np.expand_dims(keras.utils.img_to_array(image), axis=0) / 255
    outputs = keras.Model(model.inputs, [layer.output for layer in model.layers]).predict(tensor, verbose=0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for layer, maps in zip(model.layers, outputs, strict=True):
        if maps.ndim != 4:
            continue
        _, height, width, channels = maps.shape
        belt = np.zeros((height, channels * width))
        for index in range(channels):
            channel = maps[0, :, :, index]
            channel = channel - channel.mean()
            if channel.std() > 0:
                channel = channel / channel.std()
            channel = np.clip(channel * 64 + 128, 0, 255).astype("uint8")
            belt[:, index * width : (index + 1) * width] = channel
        figure = pyplot.figure(figsize=(20, 20 / channels))
        pyplot.title(layer.name)
        pyplot.grid(visible=False)
        pyplot.imshow(belt, aspect="auto", cmap="viridis")
        figure.savefig(Path(folder) / f"{layer.name}.png")
        pyplot.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
