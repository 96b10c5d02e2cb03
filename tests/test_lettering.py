import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfeat.drawing.lettering import (
    columns_of,
    digit_width,
    line,
    line_height,
    numbers,
    plain,
    shortened,
    text_width,
    wrapped,
)

SIZE = 12
anything = st.text(max_size=60)


@given(anything, st.sampled_from([10, 12, 17, 34]))
@settings(max_examples=150)
def test_any_text_can_be_set_in_one_line(text: str, size: int) -> None:
    ink = line(text, size)
    assert ink.dtype == np.uint8
    assert ink.shape == (line_height(size), max(1, text_width(text, size)))


@given(anything)
@settings(max_examples=100)
def test_what_the_font_lacks_is_written_as_its_escape(text: str) -> None:
    found = plain(text)
    assert all(32 <= ord(letter) < 127 for letter in found)
    assert all(letter in found for letter in text if 32 <= ord(letter) < 127)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv2d", "conv2d"),
        ("层", "\\u5c42"),
        ("🐈", "\\U0001f408"),
        ("a\nb\t\x00\x1b[31m", "a\\x0ab\\x09\\x00\\x1b[31m"),
        ("caf\udce9", "caf\\udce9"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    ],
)
def test_letters_of_other_scripts_and_control_characters_stay_to_be_seen(text: str, expected: str) -> None:
    assert plain(text) == expected
    np.testing.assert_array_equal(line(text, SIZE), line(expected, SIZE))


def test_letters_leave_ink_within_the_line_and_others_differ() -> None:
    ink = line("Hxgj", 17)
    assert ink.max() == 255
    assert (ink[0] == 0).all()
    assert not (ink[-1] > 0).any()  # what hangs below the line fits it
    assert not np.array_equal(line("8", SIZE), line("3", SIZE))
    assert not line(" ", SIZE).any()


@given(anything.map(lambda text: text.replace(".", "")), st.integers(60, 400))
@settings(max_examples=150)
def test_a_text_that_was_shortened_fits_and_keeps_both_ends(text: str, width: int) -> None:
    found = shortened(text, SIZE, width)
    if text_width(text, SIZE) <= width:
        assert found == text
        return
    before, dots, after = found.rpartition("...")
    assert dots
    assert text.startswith(before)
    assert text.endswith(after)
    # Letters that are written as escapes may be too wide for even one of them at each end.
    assert text_width(found, SIZE) <= width or (len(before), len(after)) == (1, 1)


@pytest.mark.parametrize("letter", ["x", "层", "\x00", "W"])
def test_a_title_of_thousand_letters_is_shortened_to_a_line(letter: str) -> None:
    found = shortened(letter * 1000, 17, 400)
    assert text_width(found, 17) <= 400
    assert text_width(found, 17) > 300
    assert "..." in found


@given(st.lists(st.text("abc xyz0189,", min_size=1, max_size=12), max_size=20), st.integers(150, 300))
@settings(max_examples=100)
def test_wrapped_text_fits_its_width_and_loses_no_word(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = wrapped(text, SIZE, width)
    assert " ".join(lines).split() == text.split()
    assert all(text_width(part, SIZE) <= width for part in lines)


def test_lines_are_filled_as_far_as_they_go() -> None:
    lines = wrapped("word " * 30, SIZE, 200)
    assert len(lines) > 1
    for before, after in itertools.pairwise(lines):
        assert text_width(f"{before} {after.split()[0]}", SIZE) > 200


def test_a_word_wider_than_a_line_is_shortened() -> None:
    lines = wrapped("a " + "b" * 500 + " c", SIZE, 100)
    assert all(text_width(part, SIZE) <= 100 for part in lines)
    assert lines[0] == "a"
    assert "..." in lines[1]
    assert wrapped("", SIZE, 100) == []


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=12))
@settings(max_examples=100)
def test_numbers_set_all_at_once_are_those_set_digit_by_digit(values: list[int]) -> None:
    found = numbers(np.array(values), 10)
    step = digit_width(10)
    assert found.shape == (len(values), line_height(10), step * len(str(max(values))))
    for ink, value in zip(found, values, strict=True):
        expected = np.zeros_like(ink)
        for place, digit in enumerate(str(value)):
            glyph = line(digit, 10)[:, :step]
            expected[:, place * step : place * step + glyph.shape[1]] = glyph
        np.testing.assert_array_equal(ink, expected)


def test_numbering_does_not_change_the_numbers() -> None:
    values = np.array([3, 17, 204])
    numbers(values, 10)
    assert values.tolist() == [3, 17, 204]


def test_short_texts_in_columns_are_cut_at_their_width() -> None:
    found = columns_of(["7   -1 to 1", "", "W" * 50], 10, 90)
    assert found.shape == (3, line_height(10), 90)
    ink = line("7   -1 to 1", 10)
    np.testing.assert_array_equal(found[0, :, : ink.shape[1]], ink[:, :90])
    assert not found[0, :, ink.shape[1] :].any()
    assert not found[1].any()
    np.testing.assert_array_equal(found[2], line("W" * 50, 10)[:, :90])


def test_ink_that_is_kept_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        line("conv", SIZE)[:] = 0
