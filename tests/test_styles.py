import dataclasses
import json
from typing import Any, get_args

import pytest

from onnxfeat.drawing.styles import (
    Arrange,
    Dead,
    Normalization,
    Order,
    Reduction,
    ScaleOver,
    Style,
    StyleChoices,
    check_percentiles,
    styled,
)
from onnxfeat.errors import PictureError

FIELDS = [field.name for field in dataclasses.fields(Style)]


def test_a_style_is_the_reference_unless_something_is_chosen() -> None:
    assert Style().changed() == {}
    assert (Style().normalize, Style().scale_over, Style().colors) == ("zscore", "channel", "viridis")


def test_every_field_can_be_given_as_a_keyword() -> None:
    assert list(StyleChoices.__annotations__) == FIELDS


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("normalize", get_args(Normalization)),
        ("scale_over", get_args(ScaleOver)),
        ("arrange", (None, *get_args(Arrange))),
        ("order", get_args(Order)),
        ("dead", get_args(Dead)),
        ("reduce", (None, *get_args(Reduction))),
    ],
)
def test_a_closed_choice_takes_these_and_refuses_others_with_the_list(field: str, choices: tuple[Any, ...]) -> None:
    for choice in choices:
        chosen: Any = {field: choice}
        assert getattr(Style(**chosen), field) == choice
    wrong: Any = {field: "nonsense"}
    named = [choice for choice in choices if choice is not None]
    with pytest.raises(PictureError, match=rf"{field} 'nonsense' is unknown: choose '{named[0]}'.* or '{named[-1]}'"):
        Style(**wrong)


@pytest.mark.parametrize("field", ["top", "zoom", "max_belt"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", float("nan")])
def test_a_number_that_is_no_whole_one_is_refused(field: str, value: Any) -> None:
    with pytest.raises(PictureError, match=f"{field} is .*, and a whole number is wanted: pass 1 or more"):
        Style(**{field: value})


@pytest.mark.parametrize("aspect", [0, -1.5, float("nan")])
def test_an_aspect_that_is_no_shape_is_refused(aspect: float) -> None:
    with pytest.raises(PictureError, match=r"aspect is .*, width over height: pass a number above 0"):
        Style(aspect=aspect)


@pytest.mark.parametrize("percentiles", [(99, 1), (1, 1), (-1, 99), (1, 100.5), (1,), (1, 2, 3), (float("nan"), 5)])
def test_percentiles_out_of_order_are_refused(percentiles: Any) -> None:
    with pytest.raises(PictureError, match=r"two numbers from 0 to 100 in order are wanted: such as \(1, 99\)"):
        check_percentiles(percentiles)
    with pytest.raises(PictureError, match="two numbers from 0 to 100 in order are wanted"):
        Style(percentiles=percentiles)


@pytest.mark.parametrize(
    "style",
    [
        Style(),
        Style(normalize="percentile", percentiles=(5, 50), scale_over="batch", channels=(3, 0), top=2, dead="last"),
        Style(reduce="l2", colormap="magma", aspect=2.5, zoom=3, hidpi=True, frame=False, max_belt=100),
    ],
)
def test_a_style_comes_back_from_its_json(style: Style) -> None:
    assert list(style.to_json()) == FIELDS
    read: Any = json.loads(json.dumps(style.to_json()))
    assert styled(None, read) == style
    changed: Any = json.loads(json.dumps(style.changed()))
    assert styled(None, changed) == style


def test_only_what_differs_is_told_as_changed() -> None:
    assert Style(top=3, normalize="zscore", percentiles=(1, 99)).changed() == {"top": 3}
    assert Style(channels=(1, 2), percentiles=(2, 98)).changed() == {"channels": [1, 2], "percentiles": [2.0, 98.0]}


def test_single_choices_change_a_style_and_leave_the_rest() -> None:
    style = Style(normalize="log", top=5)
    assert styled(style, {"top": 7, "hidpi": True}) == Style(normalize="log", top=7, hidpi=True)
    assert style == Style(normalize="log", top=5)
    assert styled(None, {}) == Style()
    assert styled(style, {"channels": [1, 2]}).channels == (1, 2)  # type: ignore[typeddict-item]  # as JSON gives them


def test_an_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(PictureError, match="there is no choice 'normalise' of how to draw: 'normalize'"):
        styled(None, {"normalise": "log"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(PictureError, match="reduce 'sum' is unknown"):
        styled(Style(), {"reduce": "sum"})  # type: ignore[typeddict-item]


def test_signed_values_get_a_diverging_colormap_unless_another_is_chosen() -> None:
    assert Style(normalize="symmetric").colors == "coolwarm"
    assert Style(normalize="symmetric", colormap="gray").colors == "gray"
    assert Style(normalize="minmax").colors == "viridis"


@pytest.mark.parametrize(
    ("style", "most"),
    [
        (Style(), None),
        (Style(top=3), 3),
        (Style(arrange="channel"), 1),
        (Style(arrange="channel", top=4), 4),
        (Style(arrange="channel", channels=(5, 6)), None),
        (Style(arrange="grid"), None),
    ],
)
def test_one_channel_is_drawn_large_unless_more_were_named(style: Style, most: int | None) -> None:
    assert style.most == most


def test_what_pictures_share_takes_two_passes() -> None:
    assert Style().in_one_pass
    assert Style(scale_over="layer", order="similarity").in_one_pass
    assert not Style(scale_over="batch").in_one_pass
    assert not Style(reduce="pca").in_one_pass


def test_a_style_can_not_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Style().top = 3  # type: ignore[misc]


@pytest.mark.parametrize("reduce", ["mean", "max", "l2", "pca"])
@pytest.mark.parametrize("choice", [{"channels": (1,)}, {"order": "variance"}, {"top": 2}, {"dead": "omit"}])
def test_what_a_reduction_takes_no_notice_of_is_refused_beside_it(reduce: Reduction, choice: Any) -> None:
    (name,) = choice
    with pytest.raises(PictureError, match=f"reduce '{reduce}' makes one picture of all channels, so '{name}' has no"):
        Style(reduce=reduce, **choice)


def test_an_overlay_draws_one_channel_or_a_reduction_of_all() -> None:
    assert Style(overlay=True, channels=(3,)).overlay
    assert Style(overlay=True, reduce="max").overlay
    for wrong in ({"channels": (3, 4)}, {"channels": (3,), "reduce": "max"}, {"channels": ()}):
        chosen: Any = wrong
        with pytest.raises(PictureError, match="overlay draws one channel, or what reduce makes of all"):
            Style(overlay=True, **chosen)
    with pytest.raises(PictureError, match="'top' has no effect on it"):
        Style(overlay=True, top=3)
