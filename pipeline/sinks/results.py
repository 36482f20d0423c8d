"""The results folder of a bounded run: files get their final names only when the run succeeds."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from apache_beam.io.filesystems import FileSystems

from pipeline.cloud.files import CLOUD, cloud_storage, objects_under, usable_path
from pipeline.errors import OptionsError
from pipeline.tables import TABLES

# A run writes at least one file for each name, so that a reader's pattern always matches.
NAMES = (*TABLES, "nudges-adherence", "nudges-quality", "nudges-work_queue")

_OPTION = "--output_dir"
_RESULT = re.compile(rf"(?:{'|'.join(NAMES)})-\d{{5}}-of-\d{{5}}\.jsonl")
_REMOVE_SECONDS = 10.0


def unfinished_path(prefix: str) -> str:
    """The path of a new, unfinished file; `prefix` is a folder and one of NAMES."""
    return f"{prefix}-{uuid4().hex}.jsonl"


@contextmanager
def results_folder(
    output_dir: str,
    overwrite: bool,
    completing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[str]:
    """Yields a temporary folder within `output_dir`; at the end of the block its files get their final names.

    If the block fails, nothing of it remains. With `overwrite`, the results of an earlier run are replaced,
    and no other file is touched; without it, they are an error. `completing` keeps signals out of the last
    steps, and raises Stopped if one came before. Raises OptionsError if `output_dir` cannot be used.
    """
    folder = _usable_folder(output_dir)
    _refuse_results(folder, overwrite)
    made = _make(folder)
    unfinished = f"{folder}/.unfinished-{uuid4().hex}"
    try:
        made += _make(unfinished)
        yield unfinished
        with completing():
            _refuse_results(folder, overwrite)
            _move(unfinished, folder)
    except BaseException:
        _remove(unfinished, made)
        raise


def refuse_results(output_dir: str) -> None:
    """Raises OptionsError if the folder holds an earlier run's results, or cannot be used."""
    _refuse_results(_usable_folder(output_dir), overwrite=False)


def _usable_folder(output_dir: str) -> str:
    folder = usable_path(_OPTION, output_dir)
    if folder.startswith(CLOUD) and re.search(r"[*?\[\]]", folder):
        raise OptionsError(f"{_OPTION}: {folder} should not hold any of the characters * ? [ ].")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise OptionsError(f"{_OPTION}: {folder} is a file.")
    return folder.rstrip("/")


def _refuse_results(folder: str, overwrite: bool) -> None:
    if not overwrite and (results := _results(folder)):
        raise OptionsError(
            f"{_OPTION}: {folder} holds an earlier run's results, such as {results[0]}: "
            "name another folder, or replace them with --overwrite."
        )


def _results(folder: str) -> list[str]:
    return sorted(name for name in _names(folder) if _RESULT.fullmatch(name))


def result_paths(folder: str, result: str) -> list[str]:
    """The finished files of one of NAMES in a folder of results."""
    names = [name for name in _results(folder) if name.startswith(f"{result}-0")]
    return [f"{folder}/{name}" for name in names]


def _names(folder: str) -> list[str]:
    """The names in a folder; none if it does not exist."""
    if folder.startswith(CLOUD):
        prefix = f"{folder}/"
        return [file.path.removeprefix(prefix) for file in objects_under(_OPTION, prefix)]
    try:
        return os.listdir(folder or "/")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OptionsError(f"{_OPTION}: {folder} cannot be read ({error.strerror}).") from None


def _make(folder: str) -> list[Path]:
    """Makes a folder on disk and its missing parents; returns the new ones, innermost first."""
    if folder.startswith(CLOUD):
        return []
    path = Path(folder or "/")
    new = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionsError(f"{_OPTION}: {path} cannot be made ({error.strerror}).") from None
    return new


def _move(unfinished: str, folder: str) -> None:
    """Gives the finished files their final names, and removes an earlier run's."""
    for name in _results(folder):
        _delete(f"{folder}/{name}")
    written = sorted(_names(unfinished))
    for result in NAMES:
        parts = [name for name in written if re.fullmatch(rf"{result}-[0-9a-f]{{32}}\.jsonl", name)]
        if not parts:
            parts = [f"{result}.jsonl"]
            FileSystems.create(f"{unfinished}/{parts[0]}").close()
        for number, part in enumerate(parts):
            name = f"{result}-{number:05}-of-{len(parts):05}.jsonl"
            _rename(f"{unfinished}/{part}", f"{folder}/{name}")
    if not unfinished.startswith(CLOUD):
        os.rmdir(unfinished)


# Not with FileSystems, which treats a local path as a pattern.
def _delete(path: str) -> None:
    if path.startswith(CLOUD):
        cloud_storage().delete(path)
    else:
        os.remove(path)


def _rename(source: str, destination: str) -> None:
    if source.startswith(CLOUD):
        cloud_storage().rename(source, destination)
    else:
        os.replace(source, destination)


def _remove(unfinished: str, made: list[Path]) -> None:
    if unfinished.startswith(CLOUD):
        with suppress(OptionsError):
            for name in _names(unfinished):
                _delete(f"{unfinished}/{name}")
        return
    # Workers that are still running may write to it.
    deadline = time.monotonic() + _REMOVE_SECONDS
    while os.path.exists(unfinished) and time.monotonic() < deadline:
        shutil.rmtree(unfinished, ignore_errors=True)
    for folder in made:
        with suppress(OSError):
            folder.rmdir()
