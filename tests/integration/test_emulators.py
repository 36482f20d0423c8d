"""The emulators as processes: they end with whoever started them, and say what is missing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import emulators

PROGRAM = """
import sys, time
from pathlib import Path
from pipeline.emulators import bigquery_emulator, pubsub_emulator

folder = Path(sys.argv[1])
with pubsub_emulator(folder) as pubsub, bigquery_emulator(folder, folder / "data") as url:
    print(pubsub, url.removeprefix("http://"), flush=True)
    time.sleep(600)
"""


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_ctrl_c_leaves_no_emulator_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_EMULATOR_HOST")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
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


def test_an_exception_leaves_no_emulator_behind(tmp_path: Path) -> None:
    addresses: list[str] = []

    def fail() -> None:
        with emulators.pubsub_emulator(tmp_path) as address:
            assert listens(address)
            addresses.append(address)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [listens(address) for address in addresses] == [False]
    assert "Server started" in (tmp_path / "pubsub-emulator.log").read_text()


def test_without_the_jar_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(emulators, "_CLI_FOLDERS", ())
    with (
        pytest.raises(emulators.EmulatorError, match=r"apt-get install google-cloud-cli-pubsub-emulator"),
        emulators.pubsub_emulator(tmp_path),
    ):
        pass


def jar(folder: Path) -> Path:
    library = folder / "platform" / "pubsub-emulator" / "lib"
    library.mkdir(parents=True)
    (library / "cloud-pubsub-emulator-0.0.1-all.jar").touch()
    return folder


def test_without_java_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(emulators, "_CLI_FOLDERS", (str(jar(tmp_path)),))
    with (
        pytest.raises(emulators.EmulatorError, match=r"apt-get install openjdk-17-jre-headless"),
        emulators.pubsub_emulator(tmp_path),
    ):
        pass


def test_the_emulator_beside_gcloud_is_found_and_one_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcloud = jar(tmp_path / "sdk") / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.touch(mode=0o755)
    (tmp_path / "gcloud").symlink_to(gcloud)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    log = tmp_path / "log" / "pubsub-emulator.log"
    with (
        pytest.raises(emulators.EmulatorError, match="did not start") as error,
        emulators.pubsub_emulator(log.parent),
    ):
        pass
    assert str(log) in str(error.value)
    assert str(gcloud.parents[1]) in log.read_text()
