"""Convert a Keras model to ONNX: `python tools/convert.py model.keras -o model.onnx`.

The twin of `onnxfeat convert` for people who look for a script; both take the same options.
"""

import sys

from onnxfeat.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
