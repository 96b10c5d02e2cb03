import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from onnxfeat.errors import OutputError, nearest, quote
from onnxfeat.files import refuse_existing, sha256_of, whole_file, whole_folder


def refusing(code: int) -> Callable[..., NoReturn]:
    """A stand-in for a system call on a disk that refuses; tests run as root, whom no permission stops."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return refuse


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "<folder>"
        for path in sorted(folder.rglob("*"))
    }


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = b"onnx" * 1_000_000  # more than one block
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "model.onnx") == hashlib.sha256(content).hexdigest()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_is_there_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target) as temporary:
        temporary.write_text("all")
        assert not target.exists()
        assert temporary.suffix == ".txt"  # writers choose the format by it
    assert contents(tmp_path) == {"a.txt": "all"}


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with whole_file(tmp_path / "ours") as temporary:
        temporary.write_text("")
    with whole_folder(tmp_path / "folder") as scratch:
        (scratch / "ours").write_text("")
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "ours").stat().st_mode == usual
    assert (tmp_path / "folder" / "ours").stat().st_mode == usual


def test_a_file_that_failed_halfway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {}


def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {}


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt exists already and is left as it is: choose another name"):
        refuse_existing(target, overwrite=False)
    with (
        pytest.raises(OutputError, match="exists already"),
        whole_file(target),
    ):
        pytest.fail("the work began although its result can't be kept")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(tmp_path / "a.txt", overwrite=False)


def test_an_existing_file_is_replaced_when_told_to(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with whole_file(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"a.txt": "new"}


def test_an_existing_file_outlives_a_failed_replacement(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(target, overwrite=True) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(OutputError, match="is a folder, and a file is to be written there: give a file name in it"):
        refuse_existing(tmp_path, overwrite)


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*missing does not exist: make it first"):
        refuse_existing(tmp_path / "missing" / "a.txt", overwrite=True)


def test_a_name_too_long_for_the_file_system_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written: File name too long"):
        refuse_existing(tmp_path / ("x" * 300), overwrite=False)
    with (
        pytest.raises(OutputError, match="can't be written: File name too long"),
        whole_folder(tmp_path / ("x" * 300)),
    ):
        pytest.fail("there can be no such folder")


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="came into being meanwhile and is left as it is"), whole_file(target) as ours:  # noqa: PT012
        ours.write_text("ours")
        target.write_text("theirs")
    assert contents(tmp_path) == {"a.txt": "theirs"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_file_systems_without_hard_links_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "link", refusing(code))
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("all")
    assert contents(tmp_path) == {"a.txt": "all"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "No space left on device; free some space, or"),
        (errno.EROFS, "Read-only file system;"),
        (errno.EACCES, "Permission denied;"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_disk_that_refuses_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, call: str
) -> None:
    target = tmp_path / "a.txt"
    with monkeypatch.context() as patch:
        if call == "mkdir":
            patch.setattr(os, "mkdir", refusing(code))
        with (
            pytest.raises(OutputError, match=f"can't be written: {reason} choose another place") as caught,
            whole_file(target),
        ):
            refusing(code)()
    assert isinstance(caught.value.__cause__, OSError)
    assert contents(tmp_path) == {}


def test_an_error_of_the_disk_without_a_number_keeps_its_text(tmp_path: Path) -> None:
    # Pillow and zipfile raise such.
    with pytest.raises(OutputError, match="can't be written: encoder error -2; choose"), whole_file(tmp_path / "a"):
        raise OSError("encoder error -2")


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a" / "b") as scratch:
        (scratch / "one.txt").write_text("1")
        (scratch / "deep").mkdir()
        (scratch / "deep" / "two.txt").write_text("2")
        assert not (tmp_path / "a" / "b" / "one.txt").exists()
    assert contents(tmp_path / "a" / "b") == {"deep": "<folder>", "deep/two.txt": "2", "one.txt": "1"}


def test_a_folder_that_failed_halfway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a" / "b") as scratch:  # noqa: PT012
        (scratch / "one.txt").write_text("1")
        raise ZeroDivisionError
    assert contents(tmp_path) == {}


def test_a_failure_leaves_what_a_folder_held_before(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out", overwrite=True) as scratch:  # noqa: PT012
        (scratch / "notes.txt").write_text("theirs")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"out": "<folder>", "out/notes.txt": "mine"}


def test_a_folder_stays_empty_when_it_was_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert contents(tmp_path) == {"out": "<folder>"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_that_fails_halfway_takes_back_the_files_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def replace(source: Path, target: Path) -> None:
        if source.name == "2.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(source, target)  # noqa: PTH105

    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="No space left"), whole_folder(tmp_path / "out", overwrite=overwrite) as new:  # noqa: PT012
        (new / "sub").mkdir()
        for name in ("1.txt", "2.txt", "sub/1.txt"):
            (new / name).write_text(name)
    assert contents(tmp_path) == {}


def test_a_replacement_that_fails_halfway_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Path, target: Path) -> None:
        if source.name == "2.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(source, target)  # noqa: PTH105

    (tmp_path / "1.txt").write_text("old")
    (tmp_path / "2.txt").write_text("old")
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="No space left"), whole_folder(tmp_path, overwrite=True) as scratch:  # noqa: PT012
        for name in ("0.txt", "1.txt", "2.txt"):
            (scratch / name).write_text("new")
    # A replaced file can't be brought back, but none is lost and none that is new stays.
    assert contents(tmp_path) == {"1.txt": "new", "2.txt": "old"}


def test_an_existing_file_in_a_folder_keeps_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(OutputError, match=r"b\.txt exists already and is left as it is: choose another folder"):  # noqa: PT012, SIM117
        with whole_folder(tmp_path) as scratch:
            (scratch / "a.txt").write_text("new")
            (scratch / "b.txt").write_text("new")
    assert contents(tmp_path) == {"b.txt": "old"}


def test_a_folder_is_merged_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    (tmp_path / "c.txt").write_text("other")
    with whole_folder(tmp_path, overwrite=True) as scratch:
        (scratch / "b.txt").write_text("new")
    assert contents(tmp_path) == {"b.txt": "new", "c.txt": "other"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(OutputError, match="out is a file, and a folder is to be written there: choose another name"),
        whole_folder(tmp_path / "out", overwrite=overwrite),
    ):
        pytest.fail("there is a file in the way")
    assert contents(tmp_path) == {"out": "mine"}


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(OutputError, match="out is a file, and a folder is to be written there"),
        whole_folder(tmp_path / "out" / "sub"),
    ):
        pytest.fail("there is a file in the way")
    assert contents(tmp_path) == {"out": "mine"}


def test_the_file_in_the_way_of_a_folder_inside_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").write_text("mine")
    with pytest.raises(OutputError, match=r"cat is in the way of a file to be written"):  # noqa: PT012, SIM117
        with whole_folder(tmp_path, overwrite=True) as scratch:
            (scratch / "cat").mkdir()
            (scratch / "cat" / "1.png").write_text("new")
    assert contents(tmp_path) == {"cat": "mine"}


def test_the_folder_in_the_way_of_a_file_inside_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OutputError, match=r"run\.json is in the way of a file to be written"):  # noqa: SIM117
        with whole_folder(tmp_path, overwrite=True) as scratch:
            (scratch / "run.json").write_text("new")
    assert contents(tmp_path) == {"run.json": "<folder>"}


def test_choices_are_read_aloud() -> None:
    assert quote([]) == ""
    assert quote(["a"]) == "'a'"
    assert quote(["a", "b"]) == "'a' or 'b'"
    assert quote(["a", "b", "c"]) == "'a', 'b' or 'c'"


def test_at_most_three_near_names_are_offered_best_first() -> None:
    known = ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "flatten"]
    assert nearest("conv2d", known)[0] == "conv2d"
    assert len(nearest("conv2d", known)) == 3
    assert nearest("xyz", known) == []


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="is a device or pipe"), whole_file(pipe, overwrite=True):
        pass
    with (
        pytest.raises(OutputError, match="pipe is in the way"),
        whole_folder(tmp_path, overwrite=True) as scratch,
    ):
        (scratch / "pipe").write_text("1")
    assert pipe.is_fifo()


def test_behind_a_link_the_file_that_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with whole_file(tmp_path / "link.txt", overwrite=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_folder_that_may_not_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OutputError, match="is not for you to write to"):
        refuse_existing(tmp_path / "a.txt", overwrite=False)
