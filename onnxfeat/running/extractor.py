"""Run a model and collect the maps of its layers."""

from __future__ import annotations

import shutil
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from numpy.typing import NDArray

from onnxfeat.errors import LayerError, ModelError, ProviderError, quote
from onnxfeat.files import contains, sha256_of
from onnxfeat.findings import Plan
from onnxfeat.layers.selection import select
from onnxfeat.metadata import Document, read_document
from onnxfeat.picture_files import Picture
from onnxfeat.preprocessing import Preprocessing, Preset
from onnxfeat.records import FeatureMap, Features, Layer, ModelInput, Provider
from onnxfeat.registration import Place, Step
from onnxfeat.running.frames import Frames
from onnxfeat.running.images import choose_preprocessing, is_preprocessed, load_samples, shape_of
from onnxfeat.running.maps import joined, map_of, registrations_of, sample_of, that_can_be_extracted, why_no_map
from onnxfeat.running.planning import DEFAULT_BUDGET, budget_of, declared_sizes, passes, refuse_to_hold, too_large
from onnxfeat.running.runtime import extra_inputs, fed, filled, first_line, open_session, run
from onnxfeat.running.streams import Batch, Pictures, Stream, batch_of, each, one_of_each_size, refuse_none

if TYPE_CHECKING:
    import onnx

    from onnxfeat.graph.reading import Graph

_LEAST_INPUT = 1 << 28  # bytes that a picture may take as input whatever the budget for maps


class FeatureExtractor:
    """A model that is ready to give the maps of chosen layers, for any number of pictures.

    The graph is cut behind the last chosen layer, so that early layers cost little. A file that `expose` wrote runs
    as it is, without the onnx package.

    Args:
        model: Path of an ONNX file, its bytes, or a parsed model (which is not changed).
        layers: Selection (see `onnxfeat.layers.selection`); None takes all conv and pool layers with a picture, of a
            file that `expose` wrote all that it exposes.
        provider: `cpu`; `cuda`, an error if it can't run; or `auto`, CUDA if it runs, else CPU with a logged warning.
        preprocessing: How pictures become the model's input; None takes what the model's metadata say, else resizing
            to the input, RGB, 1/255 (1 where the model scales its input itself). A preset such as `"caffe"` changes
            scale, mean, std and color of that, a mapping such as `{"scale": 1.0}` or `{"preset": "torch", "size": 224}`
            single fields.
        inputs: Values for the inputs that do not take the picture, by name: a number, an array, or the path of a
            `.npy` file.
        max_bytes: Bytes that the maps in memory may take, as a number or as text such as `512MB`. What needs more runs
            in several passes (see `stream`).

    Attributes:
        layers: The chosen layers in order of execution.
        left_out: Name of each chosen layer that can't be extracted, and the reason.
        hidden: Sentences about layers of the model that can't be seen at all, and why.
        input: The model's input.
        provider: Which execution provider was asked for and which one runs.
        preprocessing: How pictures are prepared.
        preprocessing_source: Who said so: `caller`, `model` or `default`, why, and what the caller changed.
        sha256: SHA-256 of the model.
        max_bytes: The budget, in bytes.

    Raises:
        ModelError: The model can't be read or run, or wants inputs that nobody gave.
        LayerError: The selection names nothing in the model, or none of what it names can be extracted.
        ProviderError: The provider is unknown or can't run.
        MissingPackageError: ONNX Runtime is not installed.

    Example:
        >>> extractor = FeatureExtractor("models/shapes_small.onnx", layers="conv_1", provider="cpu")
        >>> features = extractor("models/pictures/chelsea.png")
        >>> features["conv_1"].shape
        (1, 16, 64, 64)
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        *,
        layers: str | Sequence[str] | None = None,
        provider: Provider = "auto",
        preprocessing: Preprocessing | Preset | Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        max_bytes: int | str = DEFAULT_BUDGET,
    ) -> None:
        if provider not in get_args(Provider):
            raise ProviderError(f"provider {provider!r} is unknown: choose {quote(get_args(Provider))}")
        self.max_bytes = budget_of(max_bytes)
        self.model_name = Path(model).name if isinstance(model, str | Path) else "<memory>"
        self._model = model
        self._asked_provider = provider
        self._given = dict(inputs or {})
        self._graph: Graph | None = None
        self._known_sizes: dict[frozenset[tuple[int, ...]], dict[str, int | None]] = {}
        self._plans: dict[frozenset[tuple[int, ...]], tuple[tuple[tuple[Layer, ...], ...], dict[str, str]]] = {}
        document = read_document(Path(model)) if isinstance(model, str | Path) else Document()
        # Only onnx's parser can tell where weights in other files are, which must be known before the runtime opens it.
        path = Path(model) if isinstance(model, str | Path) else None
        exposed_input = None if document.exposed is None else document.exposed.input
        self._as_it_is = (
            path is not None
            and exposed_input is not None
            and exposed_input.name not in self._given
            and not contains(path, b"location")
        )
        if self._as_it_is and document.exposed is not None and document.exposed.input is not None:
            document.exposed.refuse_unclear(self.model_name)
            exposed = document.exposed.layers
            chosen = exposed if layers is None else select(exposed, layers)
            self.input = document.exposed.input
            self.sha256 = sha256_of(Path(cast(str, model)))
            self.hidden: tuple[str, ...] = ()
        else:
            from onnxfeat.layers.inventory import choose_layers

            graph = self._read()
            chosen = choose_layers(graph, layers)
            document, self.sha256, self.hidden = graph.document, graph.sha256, graph.hidden
        self.layers, self.left_out = that_can_be_extracted(chosen)
        if not self._as_it_is:
            self.input = self._picture_input(self._read())
        self.preprocessing, self.preprocessing_source = choose_preprocessing(
            preprocessing, document.preprocessing, self.input
        )
        self._exposed = document.exposed
        self._steps, self._places = self._registered()
        self._is_optimized = False
        self._part_graph: Graph | None = None
        self._opened: tuple[str, ...] = ()
        self._session: Any
        self._extras: dict[str, Any] = {}
        self._open(self._plan(())[0][0])

    def __call__(self, pictures: Pictures) -> Features:
        """Return the maps of the chosen layers for one picture or many.

        Args:
            pictures: One or many of: path of a picture or `.npy` file, PIL image, `uint8` array (rows, columns,
                channels), or preprocessed array of rank 4 in the input's layout; or the `Frames` of a file.

        Raises:
            PictureError: A picture can't be read or does not fit the model, the maps of the pictures differ in size,
                or all of them together take more than `max_bytes`.
            ModelError: The model fails while it runs.
        """
        start = time.perf_counter()
        batch = batch_of(pictures)
        whole = 0
        parts = []
        samples = sum(self._samples(picture) for picture in batch)
        refuse_to_hold(self.plan(batch).total * samples, self.max_bytes, samples)
        for name, why in self._plan(self._shapes(batch))[1].items():
            raise LayerError(f"layer {name!r} does not fit: {why}, or leave it out (!{name})")
        for part in self.stream(batch):
            whole += sum(feature_map.array.nbytes for feature_map in part.values())
            refuse_to_hold(whole, self.max_bytes, samples)
            parts.append(part)
        return joined(self.layers, parts, time.perf_counter() - start)

    def stream(self, pictures: Pictures) -> Stream:
        """Give the maps of one picture or many in parts that fit `max_bytes`, as they come.

        Each part holds the maps of one picture and of as many layers as fit; `first` is the picture's position, and
        `layers` names all layers of the run. All pictures run through the first layers, then all through the next:
        one cut model is in memory at a time. Nothing runs before the first part is asked for; who iterates over the
        stream once more has all run once more.

        Args:
            pictures: As for a call; any object that gives pictures anew each time it is iterated is asked for one at a
                time, so that any number of them takes the memory of one.

        Raises:
            PictureError: A picture can't be read or does not fit the model.
            LayerError: No layer fits `max_bytes`, or none gives a map; of others, `left_out` tells why.
            ModelError: The model fails while it runs.

        Example:
            >>> extractor = FeatureExtractor("models/shapes_small.onnx", max_bytes="600KB", provider="cpu")
            >>> [list(part) for part in extractor.stream("models/pictures/chelsea.png")]
            [['conv_1', 'pool_1'], ['depthwise_2', 'pointwise_3', 'pool_3', 'conv_4', 'pool_4', 'conv_5']]
        """
        return Stream(self._parts, batch_of(pictures))

    def _parts(self, batch: Batch, durations: dict[int, float]) -> Iterator[Features]:
        """Yield the parts of a stream; note how long each picture is shown, in ms, where it is a frame."""
        groups, large = self._plan(self._shapes(batch))
        given = False
        for group in groups:
            self._open(group)
            position = 0
            for frame in each(batch):
                picture, name = frame.picture, frame.name
                start = time.perf_counter()
                samples = load_samples(picture, self.input, self.preprocessing, self.most_input)
                count = len(samples) if self.input.is_batched else 1
                ready = is_preprocessed(picture, self.input)
                for index in range(count):
                    sample = samples[index : index + 1] if self.input.is_batched else samples
                    maps, left_out = self._run(sample, group, None if ready else self.preprocessing)
                    given = given or bool(maps)
                    # Fed whole, an input may still give the maps of several samples.
                    inside = 1 if self.input.is_batched else max((len(x.array) for x in maps.values()), default=1)
                    for part in range(inside):
                        if frame.duration is not None:
                            durations[position] = frame.duration
                        yield Features(
                            maps=maps if inside == 1 else sample_of(maps, part),
                            pictures=(name if count * inside == 1 else f"{name}[{index + part}]",),
                            preprocessed=(ready,),
                            photographs=(None if ready else picture,),
                            model=self.model_name,
                            sha256=self.sha256,
                            provider=self.provider,
                            preprocessing=self.preprocessing,
                            preprocessing_source=self.preprocessing_source,
                            seconds=time.perf_counter() - start,
                            layers=tuple(layer.name for layer in self.layers),
                            first=position,
                            left_out={**self.left_out, **large, **left_out},
                        )
                        position += 1
                    del maps
        if not position:
            refuse_none()
        if not given:
            name, why = next(iter(left_out.items()))
            raise LayerError(f"none of the chosen layers gives a map, {name!r} for instance {why}: choose others")

    def plan(self, pictures: Pictures) -> Plan:
        """Return how a run on these pictures will go: its passes, and the bytes that the maps of one picture take.

        Args:
            pictures: As for a call.

        Raises:
            PictureError: A picture can't be read or does not fit the model.
            LayerError: No layer fits `max_bytes`.
        """
        shapes = self._shapes(batch_of(pictures))
        groups = self._plan(shapes)[0]
        nodes = all_nodes = 0
        if self._graph is not None:
            from onnxfeat.running.exposure import needed

            nodes = len(needed(self._graph, [layer.value for layer in self.layers])[0])
            all_nodes = len(self._graph.main)
        return Plan(
            passes=tuple(tuple(layer.name for layer in group) for group in groups),
            sizes=self._sizes(shapes),
            max_bytes=self.max_bytes,
            nodes=nodes,
            all_nodes=all_nodes,
        )

    def groups(self, picture: Picture, share: int = 1) -> tuple[tuple[Layer, ...], ...]:
        """Return the layers in groups whose maps for this picture fit the budget, `share` times over where they can."""
        shapes = self._shapes([picture])
        sizes, (groups, _) = self._sizes(shapes), self._plan(shapes)
        return tuple(part for group in groups for part in passes(group, sizes, self.max_bytes // share))

    @property
    def most_input(self) -> int:
        """Bytes that the model's input may take."""
        return max(self.max_bytes, _LEAST_INPUT)

    def close(self) -> None:
        """Free the memory that the model takes; the next run opens it again."""
        self._session, self._opened = None, ()

    def _read(self) -> Graph:
        if self._graph is None:
            from onnxfeat.graph.reading import read_graph

            self._graph = read_graph(self._model)
        return self._graph

    def _picture_input(self, graph: Graph) -> ModelInput:
        from onnxfeat.running.exposure import needed, picture_input

        names = needed(graph, [layer.value for layer in self.layers])[1]
        return picture_input(graph, names, self._given)

    def _registered(self) -> tuple[tuple[Step, ...], dict[str, Place]]:
        """Return the steps from the picture to the layers, and the place of each layer that has one."""
        if self._as_it_is and self._exposed is not None:
            layers, skeleton = self._exposed.layers, self._exposed.skeleton
        else:
            from onnxfeat.graph.skeletons import skeleton_of

            layers, skeleton = self.layers, skeleton_of(self._read(), self.input, self.layers)
        return skeleton.steps, skeleton.places_of([layer.name for layer in layers])

    def _shapes(self, batch: Batch) -> frozenset[tuple[int, ...]]:
        pictures = one_of_each_size(batch)
        shapes = {shape_of(picture, self.input, self.preprocessing, self.most_input) for picture in pictures}
        return frozenset(shape for shape in shapes if shape)

    def _samples(self, picture: Picture | Frames) -> int:
        """Return how many samples a picture stands for: a preprocessed array may hold several, a file many frames."""
        if isinstance(picture, Frames):
            return picture.count or 1  # where nobody knows, the maps are counted as they come
        if not self.input.is_batched or not is_preprocessed(picture, self.input):
            return 1
        return len(load_samples(picture, self.input, self.preprocessing, self.most_input))

    def _plan(self, shapes: Iterable[tuple[int, ...]]) -> tuple[tuple[tuple[Layer, ...], ...], dict[str, str]]:
        """Return the passes for inputs of these shapes, and why layers are in none; what is not known is one pass."""
        key = frozenset(shapes)
        if key not in self._plans:
            sizes = self._sizes(key)
            if not key:  # before there is a picture, what is unknown may well fit
                sizes = {name: size or 0 for name, size in sizes.items()}
            left_out = too_large(self.layers, sizes, self.max_bytes)
            groups = passes([x for x in self.layers if x.name not in left_out], sizes, self.max_bytes)
            if not groups:
                name, why = next(iter(left_out.items()))
                raise LayerError(f"none of the {len(left_out)} layers fits, {name!r} for instance: {why}")
            if len(groups) > 1 or left_out:
                self._read()
            if not key:  # else it was looked at with the sizes
                self._refuse_absurd(key)
            self._plans[key] = groups, left_out
        return self._plans[key]

    def _sizes(self, shapes: frozenset[tuple[int, ...]]) -> dict[str, int | None]:
        """Return the bytes of each layer's maps for inputs of these shapes."""
        sizes = declared_sizes(self.layers, self.input)
        if not shapes or None not in sizes.values():
            return sizes
        if shapes not in self._known_sizes:
            from onnxfeat.running.sizing import sizes_for

            self._refuse_absurd(shapes)
            self._known_sizes[shapes] = sizes_for(self._read(), self.layers, self.input, self._given, shapes)
        return self._known_sizes[shapes]

    def _refuse_absurd(self, shapes: frozenset[tuple[int, ...]]) -> None:
        if self._graph is None:
            return
        from onnxfeat.running.limits import refuse_absurd
        from onnxfeat.running.sizing import types_for

        values = [layer.value for layer in self.layers]
        is_open = self.input.is_open and shapes
        for types in types_for(self._graph, self.input, self._given, shapes) if is_open else [self._graph.types]:
            refuse_absurd(self._graph, types, values)

    def _open(self, group: Sequence[Layer]) -> None:
        """Make the session one that gives these layers."""
        values = tuple(dict.fromkeys(layer.value for layer in group))
        if self._opened == values:
            return
        self._session = None  # before the next one takes its memory
        content: Path | bytes
        folder, is_part = None, set(values) != {layer.value for layer in self.layers}
        if self._as_it_is and not is_part:
            content = Path(cast(str, self._model))
        else:
            from onnxfeat.running.exposure import with_outputs

            graph = self._read()
            names: Sequence[str] = values
            if is_part and self._optimized() is not None:
                graph, names = cast("Graph", self._optimized()), [self._output_of(value) for value in values]
            folder = graph.folder
            content = with_outputs(graph, names, cut=True).SerializeToString()
        self._session, self.provider = open_session(
            content, self._asked_provider, self.model_name, folder, optimized=not is_part or self._part_graph is None
        )
        self._opened = values
        if isinstance(content, Path) and self._exposed is not None:
            self._exposed.refuse_lost((x.name for x in self._session.get_outputs()), self.model_name)
        known = () if self._graph is None else self._graph.inputs
        self._extras = extra_inputs(self._session, self.input.name, self._given, self.model_name, known)

    def _optimized(self) -> Graph | None:
        """Return the graph for the passes to be cut from; None where they are cut from the model itself."""
        if not self._is_optimized:
            from onnxfeat.running.optimization import optimized_graph

            graph = self._read()
            values = [layer.value for layer in self.layers]
            watched = list(dict.fromkeys([*graph.outputs, *values])) if self._as_it_is else values
            found = optimized_graph(graph, watched, self._asked_provider, self.model_name)
            self._is_optimized = True
            if found is not None:
                self._part_graph, folder = found
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._part_graph

    def values(self, sample: NDArray[Any], group: Sequence[Layer]) -> dict[str, Any]:
        """Return what the model gives for some layers, by the names of their values, as it is.

        Args:
            sample: Input in the model's layout and element type; a fixed batch is filled with copies of one sample.
            group: Layers of one pass (see `groups`).

        Raises:
            ModelError: The model fails while it runs.
        """
        self._open(group)
        sample = filled(sample, self.input)
        feed = {self.input.name: fed(sample, self.input), **self._extras}
        outputs = {layer.value: self._output_of(layer.value) for layer in group}
        try:
            results = run(self._session, list(outputs.values()), feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
            shape = " x ".join(str(side) for side in sample.shape)
            hint = ""
            if self.input.is_open:
                hint = "; the model leaves the picture's size open: try another, such as multiples of 32"
            raise ModelError(
                f"ONNX Runtime could not run {self.model_name} on an input of {shape}: {first_line(error)}{hint}"
            ) from error
        return dict(zip(outputs, results, strict=True))

    def _run(
        self, sample: NDArray[Any], group: Sequence[Layer], prepared: Preprocessing | None
    ) -> tuple[dict[str, FeatureMap], dict[str, str]]:
        """Return the maps of some layers for one sample, and why others have none."""
        results = self.values(sample, group)
        registered = registrations_of(self._places, self._steps, self.input, sample.shape, prepared)
        maps: dict[str, FeatureMap] = {}
        left_out: dict[str, str] = {}
        uses = Counter(layer.value for layer in group)
        for layer in group:
            uses[layer.value] -= 1
            # What is not needed any more goes, so that a map and its float32 form are in memory one layer at a time.
            array = results[layer.value] if uses[layer.value] else results.pop(layer.value)
            why = why_no_map(array, layer)
            if why:
                left_out[layer.name] = why
            else:
                whole = not self.input.is_batched
                maps[layer.name] = map_of(array, layer, all_samples=whole, registration=registered.get(layer.name))
            del array
        return maps, left_out

    def _output_of(self, value: str) -> str:
        if self._graph is None:
            return value
        from onnxfeat.running.exposure import output_of

        return output_of(self._graph, value)
