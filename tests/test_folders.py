import os
from pathlib import Path

import pytest
from PIL import Image

from onnxfeat.errors import PictureError
from onnxfeat.running.folders import picture_paths


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path, format="PNG")


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_stands_for_its_pictures_as_people_count(tmp_path: Path) -> None:
    touch(tmp_path, "frame_10.png", "frame_9.png", "frame_100.PNG", "b.jpeg", "a.webp", "frame_9b.tif")
    assert names(picture_paths([tmp_path])) == [
        "a.webp", "b.jpeg", "frame_9.png", "frame_9b.tif", "frame_10.png", "frame_100.PNG",
    ]  # fmt: skip


def test_numbers_of_any_length_and_names_that_begin_with_one_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "2.png", "10.png", "a.png", "1a.png", "007.png", f"{10**30}.png", "x².png")
    assert names(picture_paths([tmp_path])) == [
        "1a.png", "2.png", "007.png", "10.png", f"{10**30}.png", "a.png", "x².png",
    ]  # fmt: skip


def test_what_is_no_picture_is_not_taken_from_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "notes.txt", "doc.pdf", "film.mp4", "film.mpg", "maps.npy", "noend", ".hidden.png")
    touch(tmp_path, "nested/b.png", "folder.png/c.png")
    assert names(picture_paths([tmp_path])) == ["a.png"]


def test_videos_are_taken_from_a_folder_where_they_are_wanted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "film.mp4", "FILM2.MOV", "b.gif")
    assert names(picture_paths([tmp_path], videos=True)) == ["FILM2.MOV", "a.png", "b.gif", "film.mp4"]
    assert names(picture_paths([tmp_path])) == ["a.png", "b.gif"]


def test_the_order_of_the_arguments_is_kept_and_files_may_come_twice(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "folder/a.png", "folder/b.png")
    found = picture_paths([tmp_path / "z.png", tmp_path / "folder", str(tmp_path / "z.png")])
    assert names(found) == ["z.png", "a.png", "b.png", "z.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a2.png", "a10.png"]),
        ("a?.png", ["a2.png"]),
        ("a[0-9]*.png", ["a2.png", "a10.png"]),
        ("**/*.png", ["a2.png", "a10.png", "c.png"]),
        ("nested/*", ["c.png"]),
        ("*.txt", ["notes.txt"]),  # who names it wants it; what is wrong with it is told when it is opened
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    touch(tmp_path, "a10.png", "a2.png", "nested/c.png", "notes.txt")
    assert names(picture_paths([tmp_path / pattern])) == expected


def test_a_pattern_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    assert picture_paths(["*.png"]) == [Path("a.png"), Path("b.png")]


def test_a_file_that_bears_the_name_of_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert names(picture_paths([tmp_path / "a[1].png"])) == ["a[1].png"]


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    touch(tmp_path, "photos [2024]/a.png")
    assert names(picture_paths([tmp_path / "photos [2024]"])) == ["a.png"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "nested/a.png")
    with pytest.raises(PictureError, match=r"there is no picture in the folder .*: name one that holds some"):
        picture_paths([tmp_path])


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "folder.jpg").mkdir()
    for pattern in ("*.gif", "*.jpg"):  # a folder is no file
        with pytest.raises(PictureError, match=r"nor one that it matches as a pattern: check it, or name the files"):
            picture_paths([tmp_path / pattern])


def test_a_file_that_is_missing_is_left_to_who_opens_it(tmp_path: Path) -> None:
    assert picture_paths([tmp_path / "missing.png"]) == [tmp_path / "missing.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on Windows")
def test_pipes_and_dangling_links_in_a_folder_are_not_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert names(picture_paths([tmp_path])) == ["a.png"]
