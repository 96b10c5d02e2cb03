"""Run onnxfeat from a shell: one command for each public function.

stdout is data, stderr is talk and progress. Exit codes: 0 done, 1 a model, picture or provider failed, 2 wrong usage.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxfeat import __version__
from onnxfeat.draw_command import draw
from onnxfeat.errors import ModelError
from onnxfeat.options import (
    AsJson,
    Batch,
    Color,
    CustomObjects,
    Debug,
    Fill,
    HalfWeights,
    Inputs,
    InputShapes,
    Labels,
    Layers,
    MaxBytes,
    Mean,
    Model,
    Opset,
    OutFile,
    OutputNames,
    Overwrite,
    Preprocess,
    Quiet,
    Resampler,
    Resize,
    Runner,
    Scale,
    Shape,
    Signature,
    Size,
    Std,
    Unsafe,
    batch_length,
    changed_fields,
    given_inputs,
    given_labels,
    given_shapes,
)
from onnxfeat.records import DEFAULT_OPSET, Weights
from onnxfeat.report_command import report
from onnxfeat.terminal import (
    errors_told,
    outcome,
    print_check,
    print_json,
    print_line,
    print_table,
    say,
    stages,
)
from onnxfeat.verdicts import few, verdict

app = typer.Typer(
    help="See what a convolutional network sees, from its ONNX file alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"onnxfeat {__version__}")  # noqa: T201  # stdout is data
        raise typer.Exit


@app.command(epilog="Example: onnxfeat convert model.keras -o model.onnx --preprocess caffe")
def convert(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A .keras, .h5 or .tflite file, or a SavedModel folder.",
            readable=False,
            show_default=False,
        ),
    ],
    output: OutFile,
    opset: Opset = DEFAULT_OPSET,
    weights: HalfWeights = "float32",
    batch: Batch = None,
    output_names: OutputNames = None,
    labels: Labels = None,
    input_shapes: InputShapes = None,
    signature: Signature = None,
    custom_objects: CustomObjects = None,
    unsafe: Unsafe = False,
    preprocess: Preprocess = None,
    size: Size = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    color: Color = None,
    interpolation: Resize = None,
    aspect: Shape = None,
    resampling: Resampler = None,
    fill: Fill = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a Keras model, SavedModel or TFLite file to ONNX, with its layer names, and compare every layer.

    The preprocessing is stored in the file; unless told otherwise it is Keras's own: load_img (nearest) and 1/255, or
    0..255 for a model that scales its input itself. So are the framework's values on a seeded input, for check.
    """
    with errors_told(debug):
        from onnxfeat.converter import convert_keras

        changes = changed_fields(
            preset=preprocess,
            size=size,
            scale=scale,
            mean=mean,
            std=std,
            color=color,
            interpolation=interpolation,
            aspect=aspect,
            resampling=resampling,
            fill=fill,
        )
        with stages(quiet) as tell:
            conversion = convert_keras(
                model,
                output,
                preprocessing=changes,
                labels=given_labels(labels),
                opset=opset,
                weights=weights,
                batch=batch_length(batch),
                input_shapes=given_shapes(input_shapes),
                output_names=output_names or (),
                signature=signature,
                custom_objects=custom_objects,
                unsafe=unsafe,
                overwrite=overwrite,
                progress=tell,
            )
        for line in outcome(conversion):
            say(quiet, line)
        if as_json:
            print_json({"schema_version": 1, **conversion.to_json()})
        else:
            print_line(str(conversion.path))


@app.command("layers", epilog="Example: onnxfeat layers model.onnx --layers 'kind:conv,!*_expand'")
def list_(
    model: Model,
    layers: Layers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the layers of a model in order of execution: name, operator, shape, what a cell sees."""
    with errors_told(debug):
        from onnxfeat.graph.reading import read_graph
        from onnxfeat.layers.inventory import all_layers, list_layers, lost_layers
        from onnxfeat.running.exposure import picture_input
        from onnxfeat.running.images import choose_preprocessing

        graph = read_graph(model)
        lost = lost_layers(graph)
        if lost:
            say(
                quiet,
                f"{len(lost)} layers of the Keras model are not listed, as another tool rewrote the file and their "
                f"values are gone ({few(lost)}): `onnxfeat check {model}` tells what became of them",
            )
        listed = list_layers(graph, layers)
        if not as_json:
            for sentence in graph.hidden:
                say(quiet, f"not listed: {sentence}")
            print_table(listed, [layer.name for layer in all_layers(graph) if layer.kind in ("conv", "pool")])
            return
        document: dict[str, Any] = {"schema_version": 1, "model": {"file": model.name, "sha256": graph.sha256}}
        try:
            target = picture_input(graph)
        except ModelError as error:  # its layers can be listed all the same
            document.update(input=None, input_problem=str(error), preprocessing=None)
        else:
            preprocessing, source = choose_preprocessing(None, graph.document.preprocessing, target)
            document.update(input=target.to_json(), preprocessing={**preprocessing.to_json(), "source": source})
        document["hidden"] = list(graph.hidden)
        document["layers"] = [layer.to_json() for layer in listed]
        print_json(document)


@app.command(epilog="Example: onnxfeat expose model.onnx -o layers.onnx --layers 'conv2d*'")
def expose(
    model: Model,
    output: OutFile,
    layers: Layers = None,
    cut: Annotated[bool, typer.Option("--cut/--no-cut", help="Leave out what the layers do not need.")] = True,
    weights: Annotated[
        Weights,
        typer.Option(help="Weights in other files: refer to the same, carry them in one, or what can be."),
    ] = "auto",
    inputs: Inputs = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write an ONNX file whose outputs are the chosen layers."""
    with errors_told(debug):
        from onnxfeat.running.exposure import expose as expose_layers

        exposed = expose_layers(
            model,
            output,
            layers=layers,
            cut=cut,
            inputs=given_inputs(inputs) or (),
            weights=weights,
            overwrite=overwrite,
        )
        size = output.stat().st_size
        say(quiet, f"exposed {len(exposed)} layers; {model.stat().st_size:,} bytes became {size:,}")
        if as_json:
            print_json({"schema_version": 1, "path": str(output), "layers": [layer.to_json() for layer in exposed]})
        else:
            print_line(str(output))


app.command(epilog="Example: onnxfeat draw model.onnx cat.jpg -o maps --layers 'conv2d*' --normalize minmax")(draw)
app.command(epilog="Example: onnxfeat report model.onnx cat.jpg -o report.html --normalize symmetric")(report)


@app.command(epilog="Example: onnxfeat check model.onnx cat.jpg")
def check(
    model: Model,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="[IMAGE]", help="A picture or .npy array; without, noise.", readable=False, show_default=False
        ),
    ] = None,
    layers: Layers = None,
    provider: Runner = "auto",
    inputs: Inputs = None,
    max_bytes: MaxBytes = "1GiB",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="PART",
            help="Deviation from the reference values, as a part of a layer's range, that passes: 1e-5 on CPU, 1e-3 "
            "elsewhere.",
            show_default=False,
        ),
    ] = None,
    preprocess: Preprocess = None,
    size: Size = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    color: Color = None,
    interpolation: Resize = None,
    aspect: Shape = None,
    resampling: Resampler = None,
    fill: Fill = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove that watching a model does not change it: run it untouched and exposed, and compare.

    A file that `convert` wrote also has its reference values replayed: what Keras gave for each layer. Exit code 1 when
    an output or a layer moves by more than rounding, is off or lost, or when weights were changed.
    """
    with errors_told(debug):
        logging.getLogger("onnxfeat").setLevel(logging.ERROR)
        from onnxfeat.running.proof import check as check_model

        changes = changed_fields(
            preset=preprocess,
            size=size,
            scale=scale,
            mean=mean,
            std=std,
            color=color,
            interpolation=interpolation,
            aspect=aspect,
            resampling=resampling,
            fill=fill,
        )
        with stages(quiet) as tell:
            found = check_model(
                model,
                image,
                layers=layers,
                provider=provider,
                preprocessing=changes,
                inputs=given_inputs(inputs),
                max_bytes=max_bytes,
                tolerance=tolerance,
                progress=tell,
            )
        for line in verdict(found):
            say(quiet, line)
        if as_json:
            print_json({"schema_version": 1, **found.to_json()})
        else:
            print_check(found)
        if not found.passed:
            raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with the process's arguments, or others; exits the process."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C does, let the stages clean up behind themselves
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not where `nohup` has it ignored
            signal.signal(number, _stop)
    app(args=None if arguments is None else list(arguments), prog_name="onnxfeat")


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)
