"""The emulators as processes: they end with whoever started them, and say what is missing."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from local import emulators
from tests.integration.servers import LOGS, SERVERS

PROGRAM = """
import sys, time
from pathlib import Path
from local import emulators
from local.emulators import bigquery_emulator

folder = Path(sys.argv[1])
with getattr(emulators, sys.argv[2])(folder) as pubsub, bigquery_emulator(folder, folder / "data") as url:
    print(pubsub, url.removeprefix("http://"), flush=True)
    time.sleep(600)
"""


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("server", SERVERS)
def test_ctrl_c_leaves_no_emulator_behind(tmp_path: Path, server: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_EMULATOR_HOST")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), SERVERS[server].__name__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as program:
        assert program.stdout is not None
        addresses = program.stdout.readline().split()
        assert [listens(address) for address in addresses] == [True, True]
        program.send_signal(signal.SIGINT)
        program.wait(60)
    assert [listens(address) for address in addresses] == [False, False]


@pytest.mark.parametrize("server", SERVERS)
def test_an_exception_leaves_no_emulator_behind(tmp_path: Path, server: str) -> None:
    addresses: list[str] = []

    def fail() -> None:
        with SERVERS[server](tmp_path) as address:
            assert listens(address)
            addresses.append(address)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [listens(address) for address in addresses] == [False]
    log = (tmp_path / LOGS[server]).read_text()
    assert ("Server started" in log) == (server == "official")


JAVA = """#!/usr/bin/env bash
if [[ $1 == -version ]]; then echo 'openjdk version "%s" 2024-01-01' >&2; else echo "$@"; exit 1; fi
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all commands that are found, but for bash; no other folder of Google's is looked into."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "env"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CLOUDSDK_ROOT_DIR", str(tmp_path / "sdk"))
    return folder


def install_java(commands: Path, version: str) -> None:
    """A Java that runs nothing; says with which arguments it was called."""
    (commands / "java").write_text(JAVA % version)
    (commands / "java").chmod(0o755)


def install_jar(folder: Path) -> Path:
    library = folder / "platform" / "pubsub-emulator" / "lib"
    library.mkdir(parents=True)
    (library / "cloud-pubsub-emulator-0.0.1-all.jar").touch()
    return folder


NO_JAR = (
    "The official Pub/Sub emulator is missing: install it with `sudo apt-get install"
    " google-cloud-cli-pubsub-emulator` (from Google's apt repository) or"
    " `gcloud components install pubsub-emulator`."
)
NO_JAVA = (
    "The Pub/Sub emulator needs Java 17 or newer: install it with"
    " `sudo apt-get install openjdk-17-jre-headless`."
)


def check_missing(folder: Path, sentence: str) -> None:
    with pytest.raises(emulators.EmulatorError) as error, emulators.pubsub_emulator(folder):
        pass
    assert str(error.value) == sentence
    assert emulators.available_pubsub() == (emulators.pubsub_server, sentence)


def test_without_the_jar_the_error_says_how_to_get_it(tmp_path: Path, commands: Path) -> None:
    install_java(commands, "17.0.1")
    check_missing(tmp_path, NO_JAR)


def test_without_java_the_error_says_how_to_get_it(tmp_path: Path, commands: Path) -> None:
    install_jar(tmp_path / "sdk")
    check_missing(tmp_path, NO_JAVA)


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22", "16", "none"])
def test_an_old_java_is_none(tmp_path: Path, commands: Path, version: str) -> None:
    install_jar(tmp_path / "sdk")
    install_java(commands, version)
    check_missing(tmp_path, NO_JAVA)


@pytest.mark.parametrize("version", ["17", "17.0.15", "21.0.2", "25-ea"])
def test_with_both_the_official_emulator_is_chosen(tmp_path: Path, commands: Path, version: str) -> None:
    install_jar(tmp_path / "sdk")
    install_java(commands, version)
    assert emulators.available_pubsub() == (emulators.pubsub_emulator, None)


def test_the_emulator_beside_gcloud_is_found_and_one_that_does_not_start_is_told(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_java(commands, "17.0.1")
    gcloud = install_jar(tmp_path / "beside") / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.touch(mode=0o755)
    (commands / "gcloud").symlink_to(gcloud)
    monkeypatch.delenv("CLOUDSDK_ROOT_DIR")
    log = tmp_path / "log" / "pubsub-emulator.log"
    with (
        pytest.raises(emulators.EmulatorError, match="did not start") as error,
        emulators.pubsub_emulator(log.parent),
    ):
        pass
    assert str(log) in str(error.value)
    assert str(gcloud.parents[1]) in log.read_text()
