"""Files on this machine and on Cloud Storage: checks paths, and expands patterns."""

import glob
import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

import google.auth
from apache_beam.io.gcp.gcsio import GcsIO
from google.api_core.exceptions import GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage import Client as StorageClient

from pipeline.errors import OptionsError

CLOUD = "gs://"
_SCHEME = re.compile(r"([a-z][-a-z0-9+.]*)://", re.IGNORECASE)
_NO_GLOB = re.compile(r"[^*?\[]*")
# Names a local server that replaces Cloud Storage and needs no credentials.
_EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"


class InputFile(NamedTuple):
    """One file to read. `size` is in bytes; None for a pipe, which can be read only once."""

    path: str
    size: int | None


def usable_path(option: str, path: str) -> str:
    """The path without `file://`. Raises OptionsError for a path that cannot be used."""
    scheme = _SCHEME.match(path)
    if scheme is None:
        return path
    if scheme[1].lower() == "file":
        return _path_of_url(option, path)
    if not path.startswith(CLOUD):
        raise OptionsError(f"{option}: {path} is neither a local path nor on Cloud Storage (gs://…).")
    if not os.environ.get(_EMULATOR_VARIABLE):
        _check_credentials(option, path)
    return path


def _path_of_url(option: str, url: str) -> str:
    path = unquote(url[len("file://") :].removeprefix("localhost"))
    if not path.startswith("/"):
        raise OptionsError(f"{option}: {url} is not the URL of a local file: it should begin with file:///.")
    return path


def _check_credentials(option: str, path: str) -> None:
    # Without credentials, the client would retry for half a minute.
    try:
        google.auth.default()
    except GoogleAuthError:
        raise OptionsError(
            f"{option}: {path} needs Google credentials, and there are none: "
            "run `gcloud auth application-default login`."
        ) from None


def cloud_storage() -> GcsIO:
    """Cloud Storage, or the local server that replaces it."""
    if os.environ.get(_EMULATOR_VARIABLE):
        # Otherwise Beam looks for credentials for half a minute.
        return GcsIO(storage_client=StorageClient.create_anonymous_client())
    return GcsIO()


def objects_under(option: str, prefix: str) -> list[InputFile]:
    """The objects on Cloud Storage whose paths begin with `prefix`.

    Raises OptionsError if they cannot be listed.
    """
    try:
        listed = [InputFile(path, size) for path, size in cloud_storage().list_files(prefix)]
    except NotFound:
        raise OptionsError(f"{option}: the bucket of {prefix} does not exist.") from None
    except (GoogleAPIError, GoogleAuthError) as error:
        raise OptionsError(f"{option}: {prefix} cannot be read ({type(error).__name__}).") from None
    # An object whose name ends with a slash represents a folder.
    return [file for file in listed if not file.path.endswith("/")]


def find_files(option: str, patterns: Iterable[str]) -> list[InputFile]:
    """The files that match the paths and patterns, each once.

    Patterns work as in a shell, on every file system: `*`, `?` and `[…]` stay within a folder and skip hidden
    files, and `**` matches any number of folders. An existing path matches itself. Raises OptionsError for a
    pattern without a match, and for an unreadable file.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        path = usable_path(option, pattern)
        for file in _on_cloud(option, path) if path.startswith(CLOUD) else _on_disk(option, path):
            found.setdefault(file.path, file)
    return list(found.values())


def _on_disk(option: str, pattern: str) -> list[InputFile]:
    paths = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise OptionsError(f"{option}: no file matches {pattern}.")
    files = [_file(option, path) for path in paths if not os.path.isdir(path)]
    if not files:
        raise _only_folders(option, pattern)
    return files


def _file(option: str, path: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise OptionsError(f"{option}: {path} cannot be read ({error.strerror}).") from None
    if stat.S_ISFIFO(status.st_mode):
        return InputFile(path, None)
    if not stat.S_ISREG(status.st_mode):
        raise OptionsError(f"{option}: {path} is neither a file nor a pipe.")
    if not os.access(path, os.R_OK):
        raise OptionsError(f"{option}: {path} cannot be read (Permission denied).")
    # A worker is another process, for which /dev/stdin is a different file.
    return InputFile(os.path.realpath(path) if path.startswith(("/dev/", "/proc/")) else path, status.st_size)


def _on_cloud(option: str, pattern: str) -> list[InputFile]:
    bucket = pattern[len(CLOUD) :].partition("/")[0]
    if not bucket or not _NO_GLOB.fullmatch(bucket):
        raise OptionsError(f"{option}: {pattern} should name a bucket, gs://BUCKET/….")
    listed = objects_under(option, _NO_GLOB.match(pattern)[0])  # type: ignore[index]
    named = [file for file in listed if file.path == pattern]
    if named:
        return named
    # `[!x]` at the start of a name would match the dot of a hidden file.
    visible = re.sub(r"(?<=/)\[!", "[!.", pattern)
    matches = re.compile(glob.translate(visible, recursive=True, include_hidden=False)).match
    files = [file for file in listed if matches(file.path)]
    if files:
        return files
    if any(file.path.startswith(pattern.rstrip("/") + "/") for file in listed):
        raise _only_folders(option, pattern)
    raise OptionsError(f"{option}: no file matches {pattern}.")


def _only_folders(option: str, pattern: str) -> OptionsError:
    if _NO_GLOB.fullmatch(pattern):
        return OptionsError(
            f"{option}: {pattern} is a folder: name its files, such as {pattern.rstrip('/')}/*.jsonl."
        )
    return OptionsError(f"{option}: {pattern} matches folders only.")
