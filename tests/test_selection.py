from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfeat.errors import LayerError
from onnxfeat.layers.selection import DEFAULT, select
from onnxfeat.records import Kind, Layer


def layer(name: str, kind: Kind, op_type: str, *, side: int = 8, source: str | None = None) -> Layer:
    return Layer(
        name=name,
        kind=kind,
        op_type=op_type,
        value=name,
        raw_value=name,
        shape=(1, 4, side, side),
        layout="NCHW",
        source=source,
    )


LAYERS = (
    layer("conv2d", "conv", "Conv", source="features.0"),
    layer("bn", "norm", "BatchNormalization"),
    layer("relu", "activation", "Relu"),
    layer("max_pooling2d", "pool", "MaxPool"),
    layer("conv2d_1", "conv", "Conv", source="features.4"),
    layer("up", "conv", "ConvTranspose", source="head/up"),
    layer("flatten", "other", "Flatten"),
    layer("squeeze", "pool", "GlobalAveragePool", side=1),
)


def names(selection: str | list[str] | None) -> list[str]:
    return [chosen.name for chosen in select(LAYERS, selection)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("conv2d", ["conv2d"]),
        ("conv2d*", ["conv2d", "conv2d_1"]),
        ("conv2d_?", ["conv2d_1"]),
        ("[br]*", ["bn", "relu"]),
        ("features.*", ["conv2d", "conv2d_1"]),
        ("op:Conv", ["conv2d", "conv2d_1"]),
        ("op:MaxPool", ["max_pooling2d"]),
        ("kind:conv", ["conv2d", "conv2d_1", "up"]),
        ("kind:pool", ["max_pooling2d", "squeeze"]),
        ("kind:activation", ["relu"]),
        ("kind:norm", ["bn"]),
        ("kind:other", ["flatten"]),
        ("kind:vector", ["squeeze"]),
        ("kind:any", [known.name for known in LAYERS]),
        (r"re:_\d$", ["conv2d_1"]),
        ("re:^head/", ["up"]),
        ("re:^(bn|up)$", ["bn", "up"]),
        ("0", ["conv2d"]),
        ("1", ["max_pooling2d"]),
        ("-1", ["squeeze"]),
        ("-5", ["conv2d"]),
        ("0:2", ["conv2d", "max_pooling2d"]),
        ("-2:", ["up", "squeeze"]),
        (":-4", ["conv2d"]),
        (":", ["conv2d", "max_pooling2d", "conv2d_1", "up", "squeeze"]),
        ("3:100", ["up", "squeeze"]),
        (" conv2d , bn ", ["conv2d", "bn"]),
        ("up,conv2d", ["conv2d", "up"]),
        ("kind:conv,!op:ConvTranspose", ["conv2d", "conv2d_1"]),
        ("kind:conv,!0", ["conv2d_1", "up"]),
        ("kind:any,!kind:any,bn", ["bn"]),
        ("conv2d,!conv2d*,conv2d", ["conv2d"]),
        ("!kind:conv", ["max_pooling2d"]),
        ("!max_pooling2d,!up", ["conv2d", "conv2d_1"]),
        ("!up,squeeze", ["conv2d", "max_pooling2d", "conv2d_1", "squeeze"]),
        (["conv2d", "re:^b,?n"], ["conv2d", "bn"]),
    ],
)
def test_a_selection_names_layers_in_the_order_of_the_model(selection: str | list[str], expected: list[str]) -> None:
    assert names(selection) == expected


def test_the_default_is_every_conv_and_pool_layer_with_a_picture() -> None:
    assert names(None) == names(DEFAULT) == ["conv2d", "max_pooling2d", "conv2d_1", "up"]


def test_taking_away_vectors_where_there_are_none_is_no_mistake() -> None:
    assert select(LAYERS[:1], DEFAULT.replace("kind:pool,", "")) == LAYERS[:1]


def test_a_glob_is_matched_in_its_case_on_every_system() -> None:
    with pytest.raises(LayerError, match="no layer matches 'CONV2D'"):
        names("CONV2D")


def test_an_exact_name_wins_over_what_it_means_as_a_glob() -> None:
    layers = [layer("conv[1]", "conv", "Conv"), layer("conv1", "conv", "Conv")]
    assert select(layers, "conv[1]")[0].name == "conv[1]"


def test_the_source_counts_only_where_no_name_matches() -> None:
    layers = [layer("a", "conv", "Conv", source="b"), layer("b", "conv", "Conv", source="a")]
    assert [chosen.name for chosen in select(layers, "a")] == ["a"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            "conv2",
            r"no layer matches 'conv2'; the nearest are 'conv2d'(,| or) 'conv2d_1'.*: the model has 8 layers, "
            r"`onnxfeat layers MODEL --layers kind:any` lists them",
        ),
        ("zzz*", r"no layer matches 'zzz\*': the model has 8 layers, `onnxfeat layers MODEL --layers kind:any` lists"),
        ("op:MaxPol", r"no layer matches 'op:MaxPol'; the nearest are 'MaxPool'"),
        ("op:conv", r"no layer matches 'op:conv'; the nearest are 'Conv'"),
        ("re:^bnn$", r"no layer matches 're:\^bnn\$'; the nearest are 'bn'"),
        ("re:(", r"'\(' is not a regular expression \(.*\): mend it, or use a glob"),
        (
            "kind:Conv",
            r"kind 'Conv' is unknown: choose 'conv', 'pool', 'activation', 'norm', 'other', 'vector' or 'any'",
        ),
        ("5", r"position 5 is outside the list of 5 conv and pool layers: `onnxfeat layers MODEL` numbers them from 0"),
        ("-6", r"position -6 is outside the list of 5"),
        ("4:2", r"position 4:2 is outside the list of 5"),
        ("", r"the selection '' has an empty term: name layers, for instance 'conv\*,!op:MaxPool'"),
        ("conv2d,,bn", r"the selection 'conv2d,,bn' has an empty term"),
        ([], r"the selection \[\] has an empty term"),
        ("!", r"no layer matches ''"),
        ("conv2d,!bnn", r"no layer matches 'bnn'; the nearest are 'bn'"),
        ("conv2d,!conv2d", r"the selection 'conv2d,!conv2d' leaves none of the 8 layers: take fewer away"),
    ],
)
def test_a_selection_that_names_nothing_says_why_and_what_to_do(selection: str | list[str], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        names(selection)


def test_a_kind_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(LayerError, match="no layer matches 'kind:pool'"):
        select(LAYERS[:1], "kind:pool")


def test_only_vectors_asked_for_where_there_are_none_is_an_error() -> None:
    with pytest.raises(LayerError, match="leaves none of the 1 layers"):
        select(LAYERS[:1], "kind:vector")


@pytest.mark.parametrize("selection", ["-:", ":-", "-:-"])
def test_a_minus_without_a_number_is_no_range(selection: str) -> None:
    with pytest.raises(LayerError, match=f"no layer matches '{selection}'"):
        select(LAYERS, selection)


@pytest.mark.parametrize("selection", [None, "!conv2d"])
def test_a_model_without_conv_and_pool_layers_says_what_else_to_choose(selection: str | None) -> None:
    with pytest.raises(
        LayerError, match=r"none of the model's 2 layers is a conv or pool layer with a picture: choose"
    ):
        select(LAYERS[1:3], selection)


@settings(max_examples=100)
@given(st.sets(st.sampled_from([known.name for known in LAYERS]), min_size=1), st.randoms(use_true_random=False))
def test_the_order_of_the_terms_does_not_matter_and_a_name_chooses_itself(chosen: set[str], random: object) -> None:
    terms = sorted(chosen)
    random.shuffle(terms)  # type: ignore[attr-defined]
    assert names(",".join(terms)) == names(terms) == [known.name for known in LAYERS if known.name in chosen]


@settings(max_examples=100)
@given(st.text(max_size=12))
def test_any_text_chooses_layers_or_is_a_layer_error(selection: str) -> None:
    try:
        chosen = select(LAYERS, selection)
    except LayerError as error:
        assert ": " in str(error)  # noqa: PT017  # what to do next; no other class may come
    else:
        assert chosen
        assert [known for known in LAYERS if known in chosen] == list(chosen)


def test_a_list_of_positions_selects() -> None:
    assert select(LAYERS, [0]) == select(LAYERS, "0")  # type: ignore[list-item]


def test_what_is_neither_text_nor_a_list_is_refused() -> None:
    with pytest.raises(LayerError, match="the selection 3 is neither text nor a list"):
        select(LAYERS, 3)  # type: ignore[arg-type]
