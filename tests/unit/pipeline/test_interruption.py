"""Which signals end a program, also one that was started with signals ignored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60

PROGRAM = """
import signal
from pipeline.interruption import Interruption, Stopped

Interruption()
try:
    print("started", flush=True)
    signal.pause()
except Stopped as stopped:
    print("stopped by", signal.Signals(stopped.signum).name)
"""


def ignoring(*names: str) -> list[str]:
    """What a shell does for a background job or for nohup; a program follows."""
    return ["bash", "-c", f'trap "" {" ".join(names)}; exec "$@"', "bash"]


def heeding(signum: signal.Signals) -> list[str]:
    """What an interactive shell does, though the tests themselves may run under nohup."""
    program = (
        "import os, signal, sys; signal.signal(int(sys.argv[1]), signal.SIG_DFL);"
        " os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-c", program, str(int(signum))]


def ended_by(signum: signal.Signals, launcher: list[str]) -> str:
    with subprocess.Popen(
        [*launcher, sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == "started\n"
        program.send_signal(signum)
        try:
            printed, _ = program.communicate(timeout=SECONDS)
        finally:
            program.kill()
    return printed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run(signum: signal.Signals) -> None:
    assert ended_by(signum, heeding(signum)) == f"stopped by {signum.name}\n"


def test_ctrl_c_ends_a_background_job_too() -> None:
    assert ended_by(signal.SIGINT, ignoring("INT", "HUP")) == "stopped by SIGINT\n"


def test_nohup_keeps_a_run_up_when_its_terminal_goes() -> None:
    with subprocess.Popen(
        [*ignoring("HUP"), sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        program.stdout.readline()
        program.send_signal(signal.SIGHUP)
        program.send_signal(signal.SIGTERM)
        printed, _ = program.communicate(timeout=SECONDS)
    assert printed == "stopped by SIGTERM\n"


SWALLOWING = """
import os, signal
from pipeline.interruption import Interruption, Stopped

interruption = Interruption()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        pass
except BaseException:
    pass
try:
    with interruption.completing():
        print("completed")
except Stopped as stopped:
    print("stopped by", signal.Signals(stopped.signum).name)
"""

COMPLETING = """
import os, signal
from pipeline.interruption import Interruption

with Interruption().completing():
    os.kill(os.getpid(), signal.SIGTERM)
    print("completed")
os.kill(os.getpid(), signal.SIGINT)
print("ended")
"""


def printed_by(program: str) -> str:
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS)
    return ended.stdout


def test_a_run_does_not_complete_after_a_signal_that_a_library_swallowed() -> None:
    assert printed_by(SWALLOWING) == "stopped by SIGTERM\n"


def test_a_run_that_completes_is_not_stopped() -> None:
    assert printed_by(COMPLETING) == "completed\nended\n"


CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_programs_of_the_tests_heed_sigint() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert child.stdout == "True\n"


def test_programs_of_the_tests_heed_sigint_though_the_tests_run_in_the_background() -> None:
    test = f"{__file__}::{test_programs_of_the_tests_heed_sigint.__name__}"
    pytest_run = [*ignoring("INT"), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    ended = subprocess.run(pytest_run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 passed" in ended.stdout, ended.stdout + ended.stderr
