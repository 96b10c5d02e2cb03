"""Look through the operators of a SavedModel before it is run: it is a program of whoever made it.

What runs is what the signature's outputs need, what loads the variables, and what initializes. In each of these, an
operator that can reach beyond the model's own numbers is refused. TensorFlow marks operators with effects or state
("stateful"): of these, only what models are made of is let through. A few that read files bear no mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxfeat.errors import ConversionError

# Stateful operators that stay within the model: variables, calls, loops, tables, arrays, random numbers, checks.
_HARMLESS = frozenset(
    "VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp VarIsInitializedOp "
    "VariableShape Variable VariableV2 TemporaryVariable ResourceGather ResourceGatherNd DisableCopyOnRead "
    "StatefulPartitionedCall While If Case Placeholder GuaranteeConst Empty XlaCallModule "
    "HashTable HashTableV2 AnonymousHashTable MutableHashTable MutableHashTableV2 MutableHashTableOfTensorsV2 "
    "MutableDenseHashTableV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableSizeV2 "
    "LookupTableExportV2 InitializeTableV2 "
    "TensorArray TensorArrayV2 TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 "
    "TensorArrayScatterV3 TensorArrayConcatV3 TensorArraySplitV3 TensorArraySizeV3 TensorArrayCloseV3 "
    "RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal RandomShuffle Multinomial RandomGamma "
    "RandomPoissonV2 StatefulUniform StatefulStandardNormalV2 StatefulUniformInt StatefulUniformFullInt "
    "StatefulTruncatedNormal RngReadAndSkip RngSkip NonDeterministicInts StatelessRandomGetAlg "
    "Assert CheckNumerics CheckNumericsV2".split()
)
_RESTORING = frozenset("Restore RestoreSlice RestoreV2".split())
_READING = frozenset("ReadFile MatchingFiles ImmutableConst PyFuncStateless InitializeTableFromTextFile".split())


def refuse_unsafe_operators(folder: Path, meta_graph: Any, outputs: Iterable[str]) -> None:
    """Raise a `ConversionError` if running a SavedModel could do more than compute.

    Args:
        folder: Where it is, for the message.
        meta_graph: Its `MetaGraphDef`.
        outputs: Names of the tensors that will be computed.
    """
    runs = {
        "": (list(outputs) + _initializers(meta_graph), frozenset()),
        " while its variables are loaded": ([meta_graph.saver_def.restore_op_name], _RESTORING),
    }
    for when, (names, allowed) in runs.items():
        for node in _needed(meta_graph.graph_def, names):
            if node.op not in allowed and _reaches_beyond(node.op):
                raise ConversionError(
                    f"{folder} would run the operator {node.op} ({node.name!r}){when}, which can touch files, run "
                    f"Python code or talk to other machines: if you trust whoever made it, allow that with --unsafe "
                    f"(unsafe=True in Python); else save the model without it"
                )


def _reaches_beyond(operator: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(operator)
    stateful = definition is not None and definition.is_stateful
    return operator in _READING or "Dataset" in operator or (stateful and operator not in _HARMLESS)


def _initializers(meta_graph: Any) -> list[str]:
    """Return what the loader runs after it loaded the variables."""
    names = []
    for name in ("saved_model_main_op", "legacy_init_op"):
        if name in meta_graph.collection_def:
            names += meta_graph.collection_def[name].node_list.value
    if "__saved_model_init_op" in meta_graph.signature_def:
        names += [info.name for info in meta_graph.signature_def["__saved_model_init_op"].outputs.values()]
    return names


def _needed(graph_def: Any, names: Iterable[str]) -> Iterator[Any]:
    """Yield the operators that these depend on, and all of the functions that they call."""
    nodes = {node.name: node for node in graph_def.node}
    functions = {function.signature.name: function for function in graph_def.library.function}
    todo, seen, called = [_operator_of(name) for name in names], set[str](), list[str]()
    while todo:
        name = todo.pop()
        if name in nodes and name not in seen:
            seen.add(name)
            yield nodes[name]
            todo.extend(_operator_of(source) for source in nodes[name].input)
            called.extend(_functions_of(nodes[name]))
    seen.clear()
    while called:
        name = called.pop()
        if name in functions and name not in seen:
            seen.add(name)
            for node in functions[name].node_def:
                yield node
                called.extend(_functions_of(node))


def _operator_of(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]


def _functions_of(node: Any) -> Iterator[str]:
    yield node.op
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name
