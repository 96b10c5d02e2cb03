from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfeat.errors import LayerError, PictureError, nearest, quote
from onnxfeat.findings import Conversion, LayerAgreement
from onnxfeat.metadata import MappedLayer
from onnxfeat.preprocessing import Preprocessing
from onnxfeat.records import FeatureMap, Features, Layer, ModelInput, ProviderChoice


def layer(**fields: Any) -> Layer:
    return Layer(**{"name": "conv2d", "kind": "conv", "op_type": "Conv", "value": "y", "raw_value": "c", **fields})


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "spatial", "vector"),
    [
        (("N", 8, 6, 5), "NCHW", 8, (6, 5), False),
        (("N", 6, 5, 8), "NHWC", 8, (6, 5), False),
        ((1, 8, 1, 1), "NCHW", 8, (1, 1), True),
        ((1, 8, 1, 7), "NCHW", 8, (1, 7), False),
        ((1, 8), "NC", 8, (), True),
        ((1, 8, 4), "NCW", 8, (4,), False),
        ((1, 8, 4, 5, 6), "NCDHW", 8, (4, 5, 6), False),
        (("N", "C", "H", None), "NCHW", None, ("H", None), False),
        (None, "NCHW", None, None, False),
        ((1, 8, 1, 1), None, None, None, False),
        ((1, 1, 1), "NCHW", None, None, False),
    ],
)
def test_channels_and_sides_follow_from_shape_and_layout(
    shape: Any, layout: str | None, channels: int | None, spatial: Any, vector: bool
) -> None:
    found = layer(shape=shape, layout=layout)
    assert (found.channels, found.spatial, found.is_vector) == (channels, spatial, vector)


def test_a_layer_survives_json() -> None:
    found = layer(shape=("N", 8, None, 5), layout="NCHW", reduction=(2.0, 2.0), receptive_field=(3, 3), dtype="float")
    data = json.loads(json.dumps(found.to_json()))
    assert data["shape"] == ["N", 8, None, 5]
    assert (data["channels"], data["is_vector"]) == (8, False)
    assert Layer.from_json(data) == found


@pytest.mark.parametrize("record", [layer(), Preprocessing(), ProviderChoice(asked="cpu", got="x")])
def test_records_can_not_be_changed(record: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field"):
        setattr(record, dataclasses.fields(record)[0].name, "other")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"color": "cmyk"}, r"color 'cmyk' is unknown: choose 'rgb', 'bgr' or 'gray'"),
        ({"interpolation": "cubic"}, r"interpolation 'cubic' is unknown: choose 'nearest', 'box', .* or 'lanczos'"),
        ({"size": (0, 5)}, r"size \(0, 5\) is not a height and a width in pixels: pass for instance \(224, 224\)"),
        ({"size": (5,)}, r"size \(5,\) is not a height and a width"),
        ({"mean": (1.0, 2.0)}, r"mean has 2 numbers, rgb pictures have 3 channels: pass one number, or one for each"),
        ({"std": (1.0,) * 3, "color": "gray"}, r"std has 3 numbers, gray pictures have 1 channels"),
        ({"mean": ()}, "mean has 0 numbers"),
        ({"scale": 0.0}, "scale, mean and std must be finite, and neither scale nor std may be 0: pass others"),
        ({"std": (1.0, 0.0, 1.0)}, "must be finite"),
        ({"mean": (float("nan"),)}, "must be finite"),
        ({"scale": float("inf")}, "must be finite"),
        ({"gamma": 2.2}, r"preprocessing has no field 'gamma': choose 'size', 'scale', .* or 'fill'"),
    ],
)
def test_preprocessing_refuses_what_could_only_fail_later(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        Preprocessing().changed(fields)


def test_changing_preprocessing_leaves_the_original_alone() -> None:
    original = Preprocessing()
    changed = original.changed({"scale": 1.0, "mean": (1.0, 2.0, 3.0)})
    assert (original.scale, changed.scale, changed.mean) == (1 / 255, 1.0, (1.0, 2.0, 3.0))
    assert changed.color == original.color
    assert Preprocessing.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_an_input_knows_the_lengths_of_its_fixed_axes() -> None:
    found = ModelInput(name="x", shape=("N", None, 0, 3), layout="NHWC", dtype="float32")
    assert [found.axis(letter) for letter in "NHWC"] == [None, None, None, 3]
    assert ModelInput.from_json(json.loads(json.dumps(found.to_json()))) == found


def feature_map(name: str = "conv2d") -> FeatureMap:
    return FeatureMap(layer=layer(name=name), array=np.zeros((1, 4, 3, 2), np.float32))


def test_a_feature_map_can_not_be_written_to_but_the_array_of_the_caller_can() -> None:
    array = np.zeros((1, 4, 3, 2), np.float32)
    found = FeatureMap(layer=layer(), array=array)
    with pytest.raises(ValueError, match="read-only"):
        found.array[0] = 1
    assert array.flags.writeable
    assert found.array.base is array  # no copy


def test_a_feature_map_tells_its_shape_and_not_its_values() -> None:
    found = feature_map()
    assert (found.name, found.shape, found.channels) == ("conv2d", (1, 4, 3, 2), 4)
    assert repr(found) == "FeatureMap('conv2d', shape=(1, 4, 3, 2))"


def test_feature_maps_can_be_compared_and_be_keys() -> None:
    found = feature_map()
    assert found == found
    assert found != feature_map()
    assert len({found, found}) == 1


def features() -> Features:
    maps = {name: feature_map(name) for name in ("conv2d", "conv2d_1", "max_pooling2d")}
    return Features(
        maps=maps,
        pictures=("cat.png",),
        preprocessed=(False,),
        model="m.onnx",
        sha256="0",
        provider=ProviderChoice(asked="cpu", got="CPUExecutionProvider"),
        preprocessing=Preprocessing(),
        preprocessing_source="default",
        seconds=0.1,
    )


def test_features_are_a_mapping_in_the_order_of_execution() -> None:
    found = features()
    assert list(found) == ["conv2d", "conv2d_1", "max_pooling2d"]
    assert len(found) == 3
    assert found["conv2d_1"].name == "conv2d_1"
    assert "conv2d" in found
    assert "dense" not in found
    assert found.get("dense") is None
    assert found == found
    assert found != features()
    assert repr(found) == "Features(3 layers of 1 pictures, model='m.onnx')"


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(
        LayerError,
        match=r"^there is no layer 'conv2' among these 3; the nearest names are 'conv2d'(,| or) 'conv2d_1'.*: "
        r"`list\(features\)` names them all$",
    ):
        features()["conv2"]
    with pytest.raises(LayerError, match=r"there is no layer 'zzz' among these 3: `list"):
        features()["zzz"]
    with pytest.raises(KeyError, match="there is no layer 0 among these 3: `list"):
        features()[0]  # type: ignore[index]


def test_a_provider_choice_is_json() -> None:
    found = ProviderChoice(asked="auto", got="CPUExecutionProvider", note="why").to_json()
    assert found == {"asked": "auto", "got": "CPUExecutionProvider", "note": "why"}


def test_a_conversion_names_its_worst_layer() -> None:
    conversion = Conversion(
        path=Path("m.onnx"),
        layers=(
            LayerAgreement(name="a", error=1e-7, noise=1e-8),
            LayerAgreement(name="b", error=1e-6, noise=1e-8),
        ),
        layer_map=(
            MappedLayer(name="c", keras_class="Dropout", kind="other", value=None, layout=None, reason="why"),
            MappedLayer(name="a", keras_class="Conv2D", kind="conv", value="x", layout="NCHW"),
        ),
        preprocessing=Preprocessing(),
        opset=17,
        notes=("note",),
        seconds=1.0,
        computed_by="Keras 3",
    )
    assert [layer.name for layer in conversion.absent] == ["c"]
    assert conversion.worst.name == "b"
    data = json.loads(json.dumps(conversion.to_json()))
    assert (data["worst"], data["path"], data["opset"], data["computed_by"]) == ("b", "m.onnx", 17, "Keras 3")
    assert [(layer["name"], layer["status"], layer["reason"]) for layer in data["layer_map"]] == [
        ("c", "absent", "why"),
        ("a", "exact", ""),
    ]
    assert data["layers"][0] == {"name": "a", "error": 1e-7, "noise": 1e-8, "local": None, "local_noise": None}
    assert "seconds" not in data  # the same conversion gives the same document


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "'a'"), (["a", "b"], "'a' or 'b'"), (["a", "b", "c"], "'a', 'b' or 'c'")]
)
def test_names_are_listed_as_one_reads_them(names: list[str], text: str) -> None:
    assert quote(names) == text


def test_at_most_three_near_names_are_named_best_first() -> None:
    assert nearest("conv2d_11", ["conv2d_12", "conv2d_1", "conv2d_13", "conv2d_11x", "dense"])[0] == "conv2d_11x"
    assert len(nearest("conv2d", [f"conv2d_{i}" for i in range(9)])) == 3
    assert nearest("dense", ["conv2d"]) == []


def test_preprocessing_takes_plain_numbers_and_lists() -> None:
    found = Preprocessing(mean=0.5, std=[1, 2, 3], size=224)  # type: ignore[arg-type]
    assert (found.mean, found.std, found.size) == ((0.5,), (1.0, 2.0, 3.0), (224, 224))
    assert isinstance(hash(found), int)


@pytest.mark.parametrize("fields", [{"scale": "a"}, {"mean": ["b"]}, {"size": ("c", 1)}, {"std": None}])
def test_preprocessing_that_is_no_number_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PictureError, match="must be numbers"):
        Preprocessing(**fields)
