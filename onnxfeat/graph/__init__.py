"""Read an ONNX graph and know it: values, types, axes, and what hides in functions, branches and other files."""
