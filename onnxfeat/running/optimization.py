"""Optimize a graph once, so that several passes can be cut from it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onnxfeat.graph.reading import Graph, read_graph
from onnxfeat.records import Provider
from onnxfeat.running.exposure import with_outputs
from onnxfeat.running.runtime import CPU, open_session


def optimized_graph(
    graph: Graph, values: Sequence[str], provider: Provider, model_name: str
) -> tuple[Graph, str] | None:
    """Return the graph as ONNX Runtime optimizes it with some values watched, and the folder that holds its weights.

    What is fused depends on which values are watched, and the last bits of a map on what is fused: cut from one
    optimized graph, passes give the same bytes as one pass does. To be run without optimization. None on CUDA, as what
    ONNX Runtime saves there is not made to be loaded again; maps may then differ by rounding from those of one pass.

    Args:
        graph: The model.
        values: The values that are watched in one pass or another.
        provider: The execution provider.
        model_name: Name of the model, for messages.

    Raises:
        ModelError: ONNX Runtime can't load or save the model.
    """
    folder = tempfile.mkdtemp(prefix="onnxfeat-")
    try:
        file = Path(folder, "optimized.onnx")
        content = with_outputs(graph, values, cut=True).SerializeToString()
        _, choice = open_session(content, provider, model_name, graph.folder, save_to=file)
        if choice.got == CPU:
            return read_graph(file), folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return None
