"""Write files whole or not at all, and never over something that exists unless told to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxfeat.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def contains(path: Path, text: bytes) -> bool:
    """Return whether these bytes are anywhere in a file."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if text in rest + block:
                return True
            rest = block[-len(text) :]
    return False


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise an `OutputError` if something is at `path` that must not be replaced.

    Called before the work as well as by `whole_file` after it: nobody wants to learn after minutes that the file
    exists.
    """
    with _disk_errors_as_output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder, and a file is to be written there: give a file name in it")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or pipe, which a file would replace: give the name of a file")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists already and is left as it is: choose another name, or allow overwriting")
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} does not exist: make it first, or choose another place")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"the folder {path.parent} is not for you to write to: choose another place")


@contextlib.contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; move it to `path` if the block ends well, else delete it.

    Args:
        path: Where the file is to be; its folder must exist.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputError: `path` exists, its folder does not, or the disk refuses (full, read-only, no permission).
    """
    refuse_existing(path, overwrite)
    path = Path(os.path.realpath(path))  # behind a link, the file that it names is the one to write
    with _disk_errors_as_output_errors(path), _scratch_folder(path.parent) as scratch:
        temporary = scratch / path.name
        yield temporary
        _move(temporary, path, overwrite)


@contextlib.contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write to; move its files into `folder` if the block ends well, else delete it.

    Files of `folder` that have other names than the new ones are left alone.

    Args:
        folder: Where the files are to be; made if missing, with its parents.
        overwrite: Whether existing files may be replaced.

    Raises:
        OutputError: A file of that name exists, `folder` is a file, or the disk refuses (full, read-only, no
        permission).
    """
    new: list[Path] = []  # what this call makes, parents first
    with _disk_errors_as_output_errors(folder):
        for path in (folder, *folder.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise OutputError(f"{path} is a file, and a folder is to be written there: choose another name")
        try:
            _make_folders(folder, new)
            with _scratch_folder(folder) as scratch:
                yield scratch
                files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
                for file in files:
                    refuse_existing_in(folder, file, overwrite)
                for file in files:
                    target = folder / file
                    _make_folders(target.parent, new)
                    existed = os.path.lexists(target)
                    _move(scratch / file, target, overwrite)
                    if not existed:
                        new.append(target)
        except BaseException:
            for path in reversed(new):
                with contextlib.suppress(OSError):
                    if path.is_dir():
                        path.rmdir()
                    else:
                        path.unlink()
            raise


def refuse_existing_in(folder: Path, file: Path, overwrite: bool) -> None:
    """Raise an `OutputError` if `file` can't be written below `folder` without replacing something."""
    target = folder / file
    is_other = target.exists() and not target.is_file()  # a folder, a device
    in_the_way = [target] if is_other else [parent for parent in target.parents if parent.is_file()]
    if in_the_way:
        raise OutputError(f"{in_the_way[0]} is in the way of a file to be written: move it, or choose another folder")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} exists already and is left as it is: choose another folder, or allow overwriting")


def _make_folders(folder: Path, new: list[Path]) -> None:
    """Make a folder with its parents, and append those that were missing to `new`, parents first."""
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            new.append(path)


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    # Beside the target, so that the move at the end stays on one file system and is atomic.
    scratch = Path(tempfile.mkdtemp(prefix=".onnxfeat-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(source: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        source.replace(target)
        return
    try:
        os.link(source, target)  # fails if the target came into being meanwhile, where a rename would replace it
    except FileExistsError:
        raise OutputError(f"{target} came into being meanwhile and is left as it is: choose another name") from None
    except OSError:  # file systems without hard links refuse in many ways
        source.replace(target)


@contextlib.contextmanager
def _disk_errors_as_output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "free some space, or choose another place" if error.errno in _FULL else "choose another place"
        raise OutputError(f"{path} can't be written: {reason}; {advice}") from error
