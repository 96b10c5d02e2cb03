"""Prove that watching a model does not change it: run it untouched and exposed, and compare.

Where a file carries reference values, replay them too (see `onnxfeat.running.replay`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfeat.errors import LayerError, ModelError
from onnxfeat.findings import Change, Check
from onnxfeat.graph.reading import Graph, operator, read_graph
from onnxfeat.layers.inventory import choose_layers
from onnxfeat.picture_files import Picture
from onnxfeat.preprocessing import Preprocessing, Preset
from onnxfeat.recipes import InputRecipe
from onnxfeat.records import Layer, ModelInput, Provider
from onnxfeat.references import Reference
from onnxfeat.running.exposure import needed, output_of, with_outputs
from onnxfeat.running.extractor import FeatureExtractor
from onnxfeat.running.images import input_type, load_samples, refuse_large
from onnxfeat.running.limits import refuse_absurd
from onnxfeat.running.maps import why_no_map
from onnxfeat.running.planning import DEFAULT_BUDGET, budget_of
from onnxfeat.running.replay import reference_of, replay
from onnxfeat.running.runtime import extra_inputs, fed, filled, first_line, open_session, run
from onnxfeat.running.sizing import types_for

LIMIT = 1e-3
"""Largest change, relative to the range of a value, that counts as rounding whatever the value's own noise is."""

_DISTURBANCES = 4

_BLOCK = 1 << 20  # numbers that are compared at a time

# How many times the maps of a pass are in memory at once: as drawn, as written, and of a disturbed run.
_AT_ONCE = 3

# What open lengths are tried with when there is no picture: what most networks are trained with comes first.
_SIDES = (224, 256, 320, 64, 512)


def check(
    model: str | Path | bytes | onnx.ModelProto,
    picture: Picture | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    provider: Provider = "auto",
    preprocessing: Preprocessing | Preset | Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    max_bytes: int | str = DEFAULT_BUDGET,
    tolerance: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Check:
    """Run a model untouched and exposed on one input, and tell how far each output and each layer moves.

    A file that `convert_keras` wrote carries what Keras computed for each layer on inputs that can be made again. These
    are replayed, whatever the picture and the selection: the file's outputs and every layer are compared with Keras's.

    The untouched file gives the model's own outputs. They are compared with the outputs of the same model with the
    layers exposed. Each layer, as it is drawn (cut behind the last wanted layer, optimized by ONNX Runtime), is
    compared with the same value in the whole graph run node by node as it is written, optimizer off; in a quantized
    model with the same value in the whole exposed graph, as there the fused integer kernels are what is deployed.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).
        picture: What to run on, as for a `FeatureExtractor`; None takes seeded noise in the input's shape.
        layers: Selection (see `onnxfeat.layers.selection`); None takes all conv and pool layers with a picture.
        provider: As for a `FeatureExtractor`.
        preprocessing: As for a `FeatureExtractor`.
        inputs: As for a `FeatureExtractor`.
        max_bytes: As for a `FeatureExtractor`; what needs more is checked in several passes.
        tolerance: Deviation from the reference values, relative to a layer's range, that passes; None is 1e-5, and
            1e-3 on other providers than CPU. Twice what the converter measured as a layer's noise or error passes too.
        progress: Called with what is run next.

    Raises:
        ModelError: The model can't be read or run.
        LayerError: The selection names nothing in the model.
        PictureError: The picture can't be read or does not fit the model.

    Example:
        >>> found = check("models/shapes_small.onnx", "models/pictures/chelsea.png", provider="cpu")
        >>> found.passed, len(found.layers)
        (True, 8)
    """
    tell = progress or (lambda _: None)
    graph = read_graph(model)
    reference = reference_of(graph)
    replayed = None
    if reference is not None:
        replayed = replay(
            _content(model),
            graph,
            reference,
            provider=provider,
            max_bytes=budget_of(max_bytes),
            tolerance=tolerance,
            progress=tell,
        )
    elif tolerance is not None:
        raise ModelError(
            f"{graph.origin} carries no reference values for a tolerance to apply to: leave it out, or convert the "
            f"Keras model again with this onnxfeat"
        )
    recipes = _recipes(graph, reference) if picture is None else {}
    given = {**_beside_the_picture(graph, recipes, inputs or {}, layers), **(inputs or {})}
    try:
        extractor = FeatureExtractor(
            model,
            layers=layers,
            provider=provider,
            preprocessing=preprocessing,
            inputs=given,
            max_bytes=max_bytes,
        )
    except LayerError as error:
        if replayed is None or layers is not None:
            raise
        return Check(
            model=Path(model).name if isinstance(model, str | Path) else "<memory>",
            sha256=graph.sha256,
            provider=replayed.provider,
            outputs=(),
            layers=(),
            left_out={},
            limit=LIMIT,
            reference=replayed,
            not_watched=str(error),
        )
    outputs, found, left_out = _watched(model, picture, recipes, extractor, graph, given, tell)
    return Check(
        model=extractor.model_name,
        sha256=extractor.sha256,
        provider=extractor.provider,
        outputs=tuple(outputs.values()),
        layers=tuple(found[layer.name] for layer in extractor.layers if layer.name in found),
        left_out=left_out,
        limit=LIMIT,
        reference=replayed,
    )


def _recipes(graph: Graph, reference: Reference | None) -> dict[str, InputRecipe]:
    """Return the recipes of the inputs that the file still has, by name."""
    recipes = () if reference is None else reference.inputs
    return {recipe.name: recipe for recipe in recipes if recipe.name in graph.inputs}


def _beside_the_picture(
    graph: Graph, recipes: Mapping[str, InputRecipe], given: Mapping[str, Any], layers: str | Sequence[str] | None
) -> dict[str, NDArray[Any]]:
    """Return what the recipes give to the inputs that do not take the picture.

    That is taken by the input that the metadata name, else by the first that the layers see and that takes pictures,
    else by the first that they see.
    """
    document = graph.document
    known = document.input if document.exposed is None else document.exposed.input
    left = [name for name in recipes if name not in given]
    seen = [name for name in left if name in _inputs_of(graph, layers)] or left
    pictures = [name for name in seen if len(recipes[name].shape) == 4]
    taken = known.name if known is not None else next(iter(pictures or seen), "")
    return {name: recipes[name].values() for name in left if name != taken}


def _inputs_of(graph: Graph, layers: str | Sequence[str] | None) -> set[str]:
    """Return what the chosen layers are computed of."""
    try:
        chosen = choose_layers(graph, layers)
    except LayerError:  # told by the extractor, or there is nothing to watch
        return set()
    return needed(graph, [layer.value for layer in chosen])[1]


def _watched(
    model: str | Path | bytes | onnx.ModelProto,
    picture: Picture | None,
    recipes: Mapping[str, InputRecipe],
    extractor: FeatureExtractor,
    graph: Graph,
    given: Mapping[str, Any],
    tell: Callable[[str], None],
) -> tuple[dict[str, Change], dict[str, Change], dict[str, str]]:
    """Return how far each output and each layer moves, and which layers could not be compared for what reason."""
    refuse_absurd(graph, graph.types, sorted(graph.outputs))
    tell("the untouched model")
    untouched, _ = open_session(_content(model), extractor.provider.asked, extractor.model_name)
    sample = _sample(picture, recipes, extractor, untouched, given)
    bound = types_for(graph, extractor.input, given, [sample.shape])
    refuse_absurd(graph, bound[0], sorted(graph.outputs))
    before = _run(untouched, _feed(sample, extractor, untouched, given), extractor.model_name)
    del untouched  # before the exposed one takes its memory
    outputs: dict[str, Change] = {}
    found: dict[str, Change] = {}
    left_out = dict(extractor.left_out)
    quantized = any("Quantize" in operator(node) or operator(node).startswith("QLinear") for node in graph.nodes)
    for group in extractor.groups(sample, share=_AT_ONCE):
        tell(f"the exposed model, {len(found)} of {len(extractor.layers)} layers done")
        run_on = partial(_values, graph, group, extractor, given)
        drawn = extractor.values(sample, group)
        extractor.close()  # each session takes the model's memory; one at a time is open
        for layer in group:
            why = why_no_map(drawn[layer.value], layer)
            if why:
                left_out[layer.name] = why
        seen = [layer for layer in group if layer.name not in left_out]
        values = {layer.name: output_of(graph, layer.value) for layer in seen}
        watched = run_on(sample, more=before)
        moved = {name: change_of(name, value, watched[name]) for name, value in before.items()}
        written = watched if quantized else run_on(sample, optimized=False)
        del watched
        compared = {
            layer.name: change_of(layer.name, written[values[layer.name]], drawn[layer.value]) for layer in seen
        }
        del drawn
        if not all(change.is_rounding(LIMIT) for change in compared.values()):
            for other in _disturbed(sample):
                again = run_on(other, optimized=quantized)
                compared = {
                    name: _with_noise(change, written[values[name]], again[values[name]])
                    for name, change in compared.items()
                }
                del again
        del written
        outputs = {name: max(change, outputs.get(name, change), key=_size) for name, change in moved.items()}
        found.update(compared)
    if not all(change.is_rounding(LIMIT) for change in outputs.values()):
        tell("the untouched model on a disturbed input")
        # Not the exposed one: what is wrong with that would pass for noise.
        untouched, _ = open_session(_content(model), extractor.provider.asked, extractor.model_name)
        for other in _disturbed(sample):
            again = _run(untouched, _feed(other, extractor, untouched, given), extractor.model_name)
            outputs = {name: _with_noise(change, before[name], again[name]) for name, change in outputs.items()}
    return outputs, found, left_out


def change_of(name: str, before: Any, after: Any) -> Change:
    """Return how far a value moved; of a sequence or map, how far the part moved that moved most.

    Args:
        name: What it is called.
        before: Array of any type, or what else ONNX Runtime gives (a sequence or map).
        after: The same of the other run.

    Example:
        >>> change_of("y", np.array([0.0, 2.0]), np.array([0.0, 1.0])).relative
        0.5
    """
    far = Change(name=name, largest=math.inf, relative=math.inf, equal=False)
    none = Change(name=name, largest=0.0, relative=0.0, equal=True)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        parts = (change_of(name, old, new) for old, new in zip(before, after, strict=True))
        return max(parts, key=_size, default=none)
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return change_of(name, list(before.values()), [after[key] for key in before])
    old, new = np.asarray(before), np.asarray(after)
    if old.shape != new.shape or old.dtype != new.dtype:
        return far
    if old.dtype.kind not in "fiub":
        return none if np.array_equal(old, new) else far
    return _change_of_numbers(name, np.ascontiguousarray(old).reshape(-1), np.ascontiguousarray(new).reshape(-1))


def _change_of_numbers(name: str, old: NDArray[Any], new: NDArray[Any]) -> Change:
    """Return how far a row of numbers moved, block by block; what is not finite must be so at the same places.

    Quarters are compared: differences of numbers near the end of float64 are beyond it.
    """
    equal, largest, low, high = True, 0.0, math.inf, -math.inf
    for start in range(0, old.size, _BLOCK):
        one, two = old[start : start + _BLOCK], new[start : start + _BLOCK]
        equal = equal and np.array_equal(one.view(np.uint8), two.view(np.uint8))
        before, after = one.astype(np.float64) / 4, two.astype(np.float64) / 4
        finite = np.isfinite(before)
        if not np.array_equal(before[~finite], after[~finite], equal_nan=True) or not np.isfinite(after[finite]).all():
            return Change(name=name, largest=math.inf, relative=math.inf, equal=False)
        before, after = before[finite], after[finite]
        if before.size:
            largest = max(largest, float(np.abs(before - after).max()))
            low, high = min(low, float(before.min())), max(high, float(before.max()))
    if equal or low > high:
        return Change(name=name, largest=0.0, relative=0.0, equal=equal)
    most = max(abs(low), abs(high))
    extent = (high - low if high - low > most / 100 else most) or 0.25
    with np.errstate(over="ignore"):
        return Change(name=name, largest=float(np.multiply(largest, 4)), relative=largest / extent, equal=False)


def _size(change: Change) -> tuple[bool, float, bool]:
    return not change.is_rounding(LIMIT), change.relative, not change.equal


def _content(model: str | Path | bytes | onnx.ModelProto) -> Path | bytes:
    if isinstance(model, onnx.ModelProto):
        return bytes(model.SerializeToString())
    return model if isinstance(model, bytes) else Path(model)


def _sample(
    picture: Picture | None,
    recipes: Mapping[str, InputRecipe],
    extractor: FeatureExtractor,
    session: Any,
    given: Mapping[str, Any],
) -> NDArray[Any]:
    """Return one sample of the model's input: of the picture; else what the recipe gives; else noise of a fit size."""
    target = extractor.input
    if picture is not None:
        samples = load_samples(picture, target, extractor.preprocessing, extractor.most_input)
        return samples[:1] if target.is_batched else samples
    if target.name in recipes:
        values = recipes[target.name].values().astype(input_type(target))
        return values[:1] if target.is_batched else values
    problem = ""
    for side in _SIDES:
        sample = _noise(target, side, extractor.most_input)
        try:
            _run(session, _feed(sample, extractor, session, given), extractor.model_name)
        except ModelError as error:
            problem = str(error)
        else:
            return sample
    raise ModelError(
        f"{problem}; tried sides {', '.join(map(str, _SIDES))}: pass a picture or array that the model takes"
    )


def _noise(target: ModelInput, side: int, max_bytes: int) -> NDArray[Any]:
    open_lengths = {"N": 1, "C": 3}
    sides = zip(target.shape, target.letters, strict=True)
    shape = [x if isinstance(x, int) and x > 0 else open_lengths.get(letter, side) for x, letter in sides]
    refuse_large(shape, target, "noise in the shape of the input", max_bytes)
    random = np.random.default_rng(0)
    dtype = input_type(target)
    return (random.integers(0, 128, shape) if dtype.kind in "iu" else random.random(shape)).astype(dtype)


def _feed(sample: NDArray[Any], extractor: FeatureExtractor, session: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    target = extractor.input
    sample = filled(sample, target)
    names = [x.name for x in session.get_inputs()]
    extras = extra_inputs(session, target.name, given, extractor.model_name, [*names, *given])
    return {name: value for name, value in {target.name: fed(sample, target), **extras}.items() if name in names}


def _run(session: Any, feed: Mapping[str, Any], model_name: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    names = [x.name for x in session.get_outputs()] if names is None else list(names)
    try:
        return dict(zip(names, run(session, names, feed), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ModelError(f"ONNX Runtime could not run {model_name}: {first_line(error)}") from error


def _values(
    graph: Graph,
    layers: Sequence[Layer],
    extractor: FeatureExtractor,
    given: Mapping[str, Any],
    sample: NDArray[Any],
    *,
    optimized: bool = True,
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the values of layers, and of outputs of the model, from a graph that exposes those layers."""
    exposed = with_outputs(graph, [layer.value for layer in layers], cut=False).SerializeToString()
    session, _ = open_session(
        exposed, extractor.provider.asked, extractor.model_name, graph.folder, optimized=optimized
    )
    names = [*more, *(output_of(graph, layer.value) for layer in layers)]
    return _run(session, _feed(sample, extractor, session, given), extractor.model_name, dict.fromkeys(names))


def _disturbed(sample: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield copies of a sample moved by up to four units in the last place; integers have no such copies.

    Several, as what becomes of one in a deep net is a matter of luck: in EfficientNetB0 with random weights, six of
    them moved the last layer by 0.001 to 0.008 of its range.
    """
    if sample.dtype.kind == "f":
        for seed in range(_DISTURBANCES):
            steps = np.random.default_rng(seed).integers(-4, 5, sample.shape)
            with np.errstate(all="ignore"):  # a sample may hold what is infinite
                moved = (sample * (1 + steps * np.finfo(sample.dtype).eps)).astype(sample.dtype)
            yield moved


def _with_noise(change: Change, value: Any, again: Any) -> Change:
    return replace(change, noise=max(change_of(change.name, value, again).relative, change.noise or 0.0))
