"""The options of `run_local.sh`."""

from pathlib import Path

import pytest

from local.command import LocalOptions, parse


def test_defaults() -> None:
    assert parse([]) == LocalOptions(200, 60, 50, 1, serve=False, keep=None)


def test_stated(tmp_path: Path) -> None:
    keep = tmp_path / "new"
    arguments = ["--rate=0.5", "--seconds=4", "--patients=1", "--seed=0", "--serve", f"--keep={keep}"]
    assert parse(arguments) == LocalOptions(0.5, 4, 1, 0, serve=True, keep=keep)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--rate=fast"], "--rate"),
        (["--rate=0"], "--rate"),
        (["--rate=nan"], "--rate"),
        (["--rate=inf"], "--rate"),
        (["--seconds=-1"], "--seconds"),
        (["--patients=0"], "--patients"),
        (["--patients=1.5"], "--patients"),
        (["--patients=" + "9" * 5000], "--patients"),
        (["--seed=-1"], "--seed"),
        (["--rate=0.1", "--seconds=2"], "--rate"),
        (["--keep=/dev/null"], "--keep"),
        (["--keep=/dev"], "--keep"),
        (["--serv"], "--serv"),
        (["something"], "something"),
    ],
)
def test_what_does_not_work_is_one_sentence(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("run_local.sh: ")
    assert name in errors
    assert errors.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert not ended.value.code
    output = capsys.readouterr().out
    assert output.startswith("usage: ./run_local.sh")
    assert max(len(line) for line in output.splitlines()) <= 100
