"""Convert Keras models to ONNX, with a layer map that is exact and checked by value.

The only package that knows TensorFlow, Keras and tf2onnx; they are imported when a conversion starts.
"""

from onnxfeat.converter.conversion import convert_keras

__all__ = ["convert_keras"]
