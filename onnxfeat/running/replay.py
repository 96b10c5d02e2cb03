"""Replay the reference values that a file carries, without the framework that computed them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfeat.errors import ModelError, quote
from onnxfeat.findings import FileForm, Replay, ReplayedValue, ReplayStatus
from onnxfeat.graph.inference import Types
from onnxfeat.graph.quantization import quantizations_of
from onnxfeat.graph.reading import Graph, bound_types, operator, type_name
from onnxfeat.graph.weights import digests_of
from onnxfeat.layers.chains import tapped
from onnxfeat.recipes import InputRecipe
from onnxfeat.records import ModelInput, Provider, Quantization
from onnxfeat.references import KEY, LayerReference, Reference, summarize
from onnxfeat.running.exposure import output_of, with_outputs
from onnxfeat.running.limits import refuse_absurd
from onnxfeat.running.planning import readable
from onnxfeat.running.runtime import CPU, fed, first_line, open_session, run
from onnxfeat.running.survivors import Survivor, candidates, find_survivors

FLOOR = 1e-5
"""Deviation relative to a layer's range that passes on CPU whatever the layer's own noise is."""

FLOOR_ELSEWHERE = 1e-3
"""The same on other providers: CUDA multiplies in TF32, which keeps 10 bits of a fraction, 1 part in 2048."""

FACTOR_ELSEWHERE = 100.0
"""How much more of a layer's own noise and error passes on other providers: TF32 rounds 8192 times as coarsely as the
float32 that they were measured with, which sums of many products make up for in part."""

_COPY = 0.05
"""How near, relative to its range, the value of a layer is looked for where a float16 or int8 copy lost its name."""

_MARGIN = 2  # times the noise and the error that the converter measured: other machines sum in another order

_NUMPY_NAMES = {"float": "float32", "double": "float64"}

_LEAST_INPUT = 1 << 28  # bytes that the inputs of a reference may take whatever the budget for layers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A model that runs on the inputs of its reference."""

    graph: Graph
    types: Types
    feed: Mapping[str, Any]
    provider: Provider
    max_bytes: int
    quantized: Mapping[str, Quantization]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A layer or output of the reference and where it is in the graph; `value` is None where it never was."""

    reference: LayerReference
    value: str | None
    layout: str | None
    is_known: bool
    note: str = ""
    allowed: float = FLOOR


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    """How the constant arrays of a file compare with their digests: name to first layer of those that changed."""

    changed: Mapping[str, str | None]
    retyped: int
    gone: int


def reference_of(graph: Graph) -> Reference | None:
    """Return the reference that a file carries, or None.

    Raises:
        ModelError: It is damaged, or of a newer version.
    """
    text = next((entry.value for entry in graph.model.metadata_props if entry.key == KEY), None)
    return None if text is None else Reference.from_text(text, graph.origin)


def replay(
    content: Path | bytes,
    graph: Graph,
    reference: Reference,
    *,
    provider: Provider = "auto",
    max_bytes: int,
    tolerance: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Replay:
    """Run a model on the inputs of its reference, and compare every layer and output with what the framework gave.

    The outputs are those of the file as it is; the layers are exposed in passes. A layer whose name is gone, or means
    another value than it did, is looked for among all values of the graph.

    Args:
        content: Path or bytes of the model.
        graph: The same, read.
        reference: What the file carries (see `reference_of`).
        provider: The execution provider.
        max_bytes: Bytes that the values of a pass may take; a layer that takes more has a pass of its own.
        tolerance: Deviation relative to a layer's range that passes, in place of `FLOOR` or `FLOOR_ELSEWHERE`.
        progress: Called with what is run next.

    Raises:
        ModelError: The inputs are not those of the reference, or the model can't be run.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ModelError(f"the tolerance {tolerance!r} is no part of a range: pass a number above 0, such as 0.005")
    tell = progress or (lambda _: None)
    tell("replaying the reference: the outputs")
    trial = _trial(graph, reference.inputs, provider, max_bytes)
    targets = _targets(graph, reference)
    named = [x.reference.name for x in targets[len(reference.layers) :] if x.is_known]
    refuse_absurd(graph, trial.types, sorted(graph.outputs))
    session, chosen = open_session(content, provider, graph.origin, graph.folder)
    given = _run(trial, session, named)
    del session  # before the next takes its memory
    on_cpu = chosen.got == CPU
    floor = tolerance if tolerance is not None else FLOOR if on_cpu else FLOOR_ELSEWHERE
    factor = 1.0 if on_cpu else FACTOR_ELSEWHERE
    targets = [replace(x, allowed=_allowed(x.reference, floor, factor)) for x in targets]
    arrays = _arrays(graph, reference)
    if _form(graph, reference, arrays) == "int8 copy":  # there the fused integer kernels are what is deployed
        targets = [replace(x, value=tapped(graph, x.value)) if x.is_known and x.value else x for x in targets]
    found = list(_layers(trial, targets[: len(reference.layers)], tell))
    found += [_compared(x, given.get(x.reference.name)) for x in targets[len(reference.layers) :]]
    form = _form(graph, reference, arrays, found)
    # A value that is off in a file of other numbers is off because of these; else its name may mean another value.
    sought = ("off", "lost") if form in ("as converted", "rewritten") else ("lost",)
    missing = {number: targets[number] for number, x in enumerate(found) if x.status in sought}
    if missing:
        tell(f"replaying the reference: looking for {len(missing)} layers by their values")
        least = _COPY if form in ("float16 copy", "int8 copy") else 0.0
        found = _searched(trial, targets, found, missing, least)
        form = _form(graph, reference, arrays, found)
    return Replay(
        computed_by=reference.computed_by,
        provider=chosen,
        form=form,
        layers=tuple(found[: len(reference.layers)]),
        outputs=tuple(found[len(reference.layers) :]),
        arrays=len(reference.weights),
        arrays_changed=tuple(arrays.changed),
        arrays_retyped=arrays.retyped,
        arrays_gone=arrays.gone,
        first_use=next(iter(arrays.changed.values()), None),
        tolerance=floor,
        factor=factor,
    )


def _allowed(reference: LayerReference, floor: float, factor: float) -> float:
    return max(floor, _MARGIN * factor * max(reference.noise, reference.error))


def _trial(graph: Graph, recipes: Sequence[InputRecipe], provider: Provider, max_bytes: int) -> _Trial:
    """Return the model with what to feed it; refuse inputs that are not those of the reference."""
    by_name = {recipe.name: recipe for recipe in recipes}
    unnamed = [name for name in graph.inputs if name not in by_name]
    unused = [recipe for recipe in recipes if recipe.name not in graph.inputs]
    if len(unnamed) > len(unused):
        raise ModelError(
            f"{graph.origin} has the inputs {quote(list(graph.inputs))}, and its reference values are for "
            f"{quote(list(by_name)) or 'none'}: another tool added inputs; convert the model again"
        )
    by_name.update(zip(unnamed, unused, strict=False))  # renamed inputs keep their order
    used = {name: by_name[name] for name in graph.inputs}
    most = max(max_bytes, _LEAST_INPUT)
    size = sum(math.prod(recipe.shape) * 8 for recipe in used.values())
    if size > most:
        raise ModelError(
            f"the inputs of the reference values in {graph.origin} take {readable(size)}, of a budget of "
            f"{readable(most)}: raise max_bytes, or convert the model again for smaller inputs"
        )
    return _Trial(
        graph=graph,
        types=bound_types(graph, {name: recipe.shape for name, recipe in used.items()}),
        feed={name: _fed(graph, name, recipe.values()) for name, recipe in used.items()},
        provider=provider,
        max_bytes=max_bytes,
        quantized=quantizations_of(graph),
    )


def _fed(graph: Graph, name: str, values: NDArray[Any]) -> Any:
    """Return an input's values in the type that the file wants now: a float16 copy may take float16."""
    declared = type_name(graph.types.get(name, (0, None))[0]) or str(values.dtype)
    if declared == "bfloat16":
        return fed(values, ModelInput(name=name, shape=(), layout=None, dtype=declared))
    return values.astype(_NUMPY_NAMES.get(declared, declared), copy=False)


def _targets(graph: Graph, reference: Reference) -> list[_Target]:
    """Return the layers of the reference, then its outputs."""
    layer_map = {mapped.name: mapped for mapped in graph.document.layer_map}
    targets = []
    for layer in reference.layers:
        mapped = layer_map.get(layer.name)
        value, layout = (mapped.value, mapped.layout) if mapped is not None else ("", None)
        is_known = value in graph.producers or value in graph.inputs
        note = "" if mapped is None else mapped.reason
        targets.append(_Target(reference=layer, value=value, layout=layout, is_known=is_known, note=note))
    for output in reference.outputs:
        is_known = output.name in graph.outputs
        targets.append(_Target(reference=output, value=output.name, layout=output.layout, is_known=is_known))
    return targets


def _layers(trial: _Trial, targets: Sequence[_Target], tell: Callable[[str], None]) -> Iterator[ReplayedValue]:
    """Yield what was found of each layer, in order."""
    sizes = {x.value: math.prod(x.reference.shape) * 4 for x in targets if x.is_known and x.value is not None}
    done: dict[str, ReplayedValue] = {}
    for values in _passes(trial, sizes):
        tell(f"replaying the reference, {len(done)} of {len(targets)} layers done")
        for target in targets:
            if target.value in values:
                done[target.reference.name] = _compared(target, values[target.value])
    yield from (done.get(x.reference.name) or _compared(x, None) for x in targets)


def _passes(trial: _Trial, sizes: Mapping[str, int]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield values by name in passes that fit the budget; what does not fit by itself has a pass of its own."""
    graph = trial.graph
    yield {value: np.asarray(trial.feed[value]) for value in sizes if value in trial.feed}
    groups: list[list[str]] = []
    total = 0
    for value, size in sizes.items():
        if value in trial.feed:
            continue
        if not groups or total + size > trial.max_bytes:
            groups.append([])
            total = 0
        groups[-1].append(value)
        total += size
    for group in groups:
        refuse_absurd(graph, trial.types, group)
        exposed = with_outputs(graph, group, cut=True).SerializeToString()
        session, _ = open_session(exposed, trial.provider, graph.origin, graph.folder)
        found = _run(trial, session, [output_of(graph, value) for value in group])
        yield {value: _real(trial, value, found.pop(output_of(graph, value))) for value in group}


def _run(trial: _Trial, session: Any, names: Sequence[str]) -> dict[str, Any]:
    if not names:  # which ONNX Runtime takes for all
        return {}
    taken = {x.name for x in session.get_inputs()}
    try:
        found = run(session, names, {name: value for name, value in trial.feed.items() if name in taken})
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ModelError(
            f"ONNX Runtime could not run {trial.graph.origin} on the inputs of its reference values: "
            f"{first_line(error)}; if another tool fixed the shapes of its inputs, convert the model again"
        ) from error
    return dict(zip(names, found, strict=True))


def _real(trial: _Trial, value: str, array: Any) -> NDArray[Any]:
    """Return a value in real units; integers that stand for numbers become those."""
    quantization = trial.quantized.get(value)
    if not isinstance(array, np.ndarray) or quantization is None or array.dtype.kind not in "iu":
        return np.asarray(array)
    declared = type_name(trial.graph.types.get(value, (0, None))[0])
    if declared == "int8" and array.dtype == np.uint8:  # taken 128 higher, see `onnxfeat.running.exposure`
        array = (array ^ 0x80).view(np.int8)
    return quantization.dequantize(array)


def _compared(target: _Target, array: Any) -> ReplayedValue:
    """Return how a layer's values compare with its reference; None stands for a name that is gone."""
    reference = target.reference
    name, allowed = reference.name, target.allowed
    if target.value is None:
        note = target.note or "the converted graph never had a value for it"
        return ReplayedValue(name=name, status="absent", deviation=None, allowed=allowed, value=None, note=note)
    if array is None:
        note = "its name is gone, and no value of the graph is near its reference"
        return ReplayedValue(name=name, status="lost", deviation=None, allowed=allowed, value=None, note=note)
    array, deviation, note = np.asarray(array), math.inf, target.note
    before, wanted = target.layout or "", reference.layout or ""
    if sorted(before) == sorted(wanted) and len(before) == array.ndim:
        array = array.transpose([before.index(axis) for axis in wanted])
    if array.shape != reference.shape:
        note = f"its shape is {array.shape}, and was {reference.shape}"
    else:
        measured = summarize(name, array, reference.layout)
        deviation = reference.deviation(measured)
        if measured.not_finite != reference.not_finite:
            note = f"{measured.not_finite:,} values are NaN or infinite, and {reference.not_finite:,} were"
    status: ReplayStatus = "same" if deviation <= allowed else "off"
    return ReplayedValue(name=name, status=status, deviation=deviation, allowed=allowed, value=target.value, note=note)


def _searched(
    trial: _Trial,
    targets: Sequence[_Target],
    found: Sequence[ReplayedValue],
    missing: Mapping[int, _Target],
    least: float,
) -> list[ReplayedValue]:
    """Return what was found of each layer and output, once those that are missing were looked for by value.

    A value is near enough at what is allowed for the layer, or at `least` where that is more.
    """
    values = candidates(trial.graph, trial.types, [target.reference for target in missing.values()])
    wanted = {number: (target.reference, max(target.allowed, least)) for number, target in missing.items()}
    survivors = find_survivors(wanted, _passes(trial, values))
    places = {number: x.value for number, x in enumerate(found) if x.status == "same"}
    places.update({number: survivor.value for number, survivor in survivors.items()})
    result = list(found)
    for number, target in missing.items():
        survivor = survivors.get(number)
        place = found[number].value if survivor is None else survivor.value
        there = [targets[other].reference for other, value in places.items() if value == place and other != number]
        if survivor is not None:
            result[number] = _with_survivor(found[number], survivor, target.reference, there)
        elif there:
            note = f"its name means the value of {there[0].name!r} now, and no value of the graph is near its reference"
            result[number] = replace(found[number], status="lost", deviation=None, value=None, note=note)
    return result


def _with_survivor(
    found: ReplayedValue, survivor: Survivor, reference: LayerReference, there: Sequence[LayerReference]
) -> ReplayedValue:
    """Return a layer that was off or lost as the value that it was found in; `there` are the others in that place."""
    note = "its name is gone" if found.status == "lost" else "its name means another value now"
    if survivor.deviation > FLOOR_ELSEWHERE:
        note += ", and this is the nearest value"
    # Equal ones, such as a layer and the Dropout behind it, do share a value; one of unequal ones can't be there.
    others = [x.name for x in there if x.layout == reference.layout and reference.deviation(x) > 0]
    if reference.is_constant and survivor.others:
        note += f"; ambiguous: it is the same everywhere, and {survivor.others} more values fit"
    elif others:
        note += f"; ambiguous: its reference is too near to that of {others[0]!r}, which is there, to tell them apart"
    status: ReplayStatus = "found" if survivor.deviation <= found.allowed else "off"
    return replace(found, status=status, deviation=survivor.deviation, value=survivor.value, note=note)


def _arrays(graph: Graph, reference: Reference) -> _Arrays:
    """Compare the constant arrays of a file with their digests."""
    digests = digests_of(graph.model, graph.folder, origin=graph.origin)
    shared = [name for name in reference.weights if name in digests]
    kinds = {name: (reference.weights[name].split(":")[0], digests[name].split(":")[0]) for name in shared}
    retyped = {name for name, (before, now) in kinds.items() if before != now}
    changed = [name for name in shared if name not in retyped and digests[name] != reference.weights[name]]
    gone, others = _unmatched(reference.weights, digests)
    if len(gone) == len(others) < len(reference.weights) - len(shared):  # some kept their numbers under other names
        changed, gone = [*changed, *others], []
    order = {layer.name: number for number, layer in enumerate(reference.layers)}
    uses = {name: _first_use(graph, name, reference) for name in changed}
    ordered = sorted(changed, key=lambda name: (order.get(uses[name] or "", len(order)), name))
    return _Arrays(
        changed={name: uses[name] for name in ordered},
        retyped=len(retyped),
        gone=len(gone),
    )


def _unmatched(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the arrays of before whose name and numbers are gone, and those of now that had neither before.

    An array of a new name and old numbers was renamed. One of a type that none of those gone has does not count.
    """
    renamed = Counter(digest for name, digest in now.items() if name not in before)
    gone = []
    for name, digest in before.items():
        if name in now:
            continue
        if renamed[digest]:
            renamed[digest] -= 1
        else:
            gone.append(name)
    types = Counter(before[name].split(":")[0] for name in gone)
    others = []
    for name, digest in now.items():
        kind = digest.split(":")[0]
        if name not in before and renamed[digest] and types[kind]:
            renamed[digest] -= 1
            types[kind] -= 1
            others.append(name)
    return gone, others


def _first_use(graph: Graph, array: str, reference: Reference) -> str | None:
    """Return the first layer, in order of execution, whose value depends on an array."""
    reached, todo = {array}, [array]
    while todo:
        for node in graph.consumers.get(todo.pop(), ()):
            todo += [name for name in node.output if name not in reached]
            reached.update(node.output)
    values = {mapped.name: mapped.value for mapped in graph.document.layer_map}
    return next((layer.name for layer in reference.layers if values.get(layer.name) in reached), None)


def _form(graph: Graph, reference: Reference, arrays: _Arrays, found: Sequence[ReplayedValue] = ()) -> FileForm:
    """Return what a file is: who rewrites a graph or changes its types leaves arrays of other names or types."""
    if not arrays.retyped and not arrays.gone:
        if arrays.changed:
            return "changed weights"
        return "rewritten" if any(x.status in ("lost", "found") for x in found) else "as converted"
    operators = {operator(node) for node in graph.nodes}
    if any("Quantize" in name or "Integer" in name or name.startswith("QLinear") for name in operators):
        return "int8 copy"
    before = {digest.split(":")[0] for digest in reference.weights.values()}
    now = {type_name(tensor.data_type) for tensor in graph.initializers.values()}
    return "float16 copy" if (now - before) & {"float16", "bfloat16"} else "rewritten"
