"""`.ci/venv` on machines that lack this and that: on its PATH are stand-ins for Python and uv."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "chmod", "cp", "dirname", "env", "grep", "ln", "mkdir", "rm", "sed")
NOT_FOUND = (
    "Python 3.13 is needed and was not found: install it with 'pyenv install 3.13', 'uv python install 3.13'"
    " or your system's packages (python3.13 and python3.13-venv).\n"
)
FETCHING = "There is no Python 3.13 here: installing uv from PyPI into .uv, to fetch it\n"

# Python 3.11 as far as a program that asks can tell; `-m` does what is put in for its modules.
OLD_PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then
  exec {python} -c "import sys; sys.version_info = (3, 11, 2, 'final', 0); $2"
fi
{modules}
echo "No module named $2" >&2
exit 1
"""
# `python -m venv .uv` and `.uv/bin/python -m pip install … uv`.
WITH_VENV = """
if [[ $2 == venv ]]; then mkdir -p "$3/bin" && cp {pip} "$3/bin/python"; exit; fi
"""
# `python -m pip install --target=.uv … uv`.
WITH_PIP = """
if [[ $2 == pip ]]; then exec {pip} "$@"; fi
"""
PIP = """#!/usr/bin/env bash
set -e
[[ $* != *--version ]] || exit 0
[[ $* == *--require-hashes* ]]
[[ $(grep -c '^uv==' .uv/lock.txt) == 1 && $(grep -c hash=sha256 .uv/lock.txt) -gt 1 ]]
mkdir -p .uv/bin
cp {uv} .uv/bin/uv
"""
UV = """#!/usr/bin/env bash
case "$1 $2" in
  "python install") mkdir -p "$UV_PYTHON_INSTALL_DIR" && ln -s {python} "$UV_PYTHON_INSTALL_DIR/python3.13" ;;
  "python find") [[ -e $UV_PYTHON_INSTALL_DIR/python3.13 ]] && echo "$UV_PYTHON_INSTALL_DIR/python3.13" ;;
esac
"""
REFUSED_UV = "#!/usr/bin/env bash\nexit 1\n"


class Machine:
    """A clone, and the commands that are installed beside it."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "clone"
        self._bin = folder / "bin"
        (self.clone / ".ci").mkdir(parents=True)
        (self.clone / "requirements").mkdir()
        self._bin.mkdir()
        shutil.copy(ROOT / ".ci/venv", self.clone / ".ci/venv")
        shutil.copy(ROOT / "requirements/dev.txt", self.clone / "requirements/dev.txt")
        # Nothing to install, so that no test needs the network.
        (self.clone / "requirements/none.txt").write_text("# nothing\n")
        for tool in TOOLS:
            (self._bin / tool).symlink_to(str(shutil.which(tool)))

    def script(self, name: str, text: str, **values: Path | str) -> Path:
        path = self._bin / name
        quoted = {key: shlex.quote(str(value)) for key, value in values.items() if key != "modules"}
        path.write_text(text.replace("{modules}", str(values.get("modules", ""))))
        for key, value in quoted.items():
            path.write_text(path.read_text().replace(f"{{{key}}}", value))
        path.chmod(0o755)
        return path

    def old_python(self, modules: str, uv: str = UV) -> None:
        """A Python that is too old, with `modules`, from which PyPI gives `uv`."""
        given = self.script("given-uv", uv, python=real_python())
        pip = self.script("given-pip", PIP, uv=given)
        self.script("python3", OLD_PYTHON, modules=modules, python=real_python(), pip=pip)

    def venv(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", ".ci/venv", "requirements/none.txt"],
            cwd=self.clone,
            env={"PATH": str(self._bin), "HOME": str(self.clone)},
            capture_output=True,
            text=True,
            check=False,
        )


def real_python() -> Path:
    return Path(sys.base_prefix) / "bin" / "python3.13"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def check_made(machine: Machine) -> None:
    version = "import sys; print(sys.version_info[:2] == (3, 13))"
    python = machine.clone / ".venv/bin/python"
    assert subprocess.run([python, "-c", version], capture_output=True, check=True).stdout == b"True\n"


def test_an_older_python_gets_uv_which_fetches_python(machine: Machine) -> None:
    machine.old_python(WITH_VENV + WITH_PIP)
    made = machine.venv()
    assert (made.returncode, made.stderr) == (0, FETCHING)
    check_made(machine)
    # Both stay, for a .venv that has to be made anew.
    shutil.rmtree(machine.clone / ".venv")
    again = machine.venv()
    assert (again.returncode, again.stderr) == (0, "")


def test_a_python_without_venv_gets_uv_with_pip(machine: Machine) -> None:
    machine.old_python(WITH_PIP)
    made = machine.venv()
    assert (made.returncode, made.stderr) == (0, FETCHING)
    check_made(machine)


def test_a_python_that_can_install_nothing_is_told_in_a_sentence(machine: Machine) -> None:
    machine.old_python("")
    ended = machine.venv()
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(
        FETCHING + "Python 3.13 is needed and was not found; uv could fetch it, but "
    )
    assert ended.stderr.endswith(
        "python3 can install no package: it lacks venv and pip (on Debian python3-venv).\n"
    )
    assert not (machine.clone / ".venv").exists()


def test_a_download_that_uv_is_refused_is_told_in_a_sentence(machine: Machine) -> None:
    machine.old_python(WITH_VENV, uv=REFUSED_UV)
    ended = machine.venv()
    assert (ended.returncode, ended.stderr) == (1, FETCHING + NOT_FOUND)


def test_a_package_index_that_does_not_answer_is_told_in_a_sentence(machine: Machine) -> None:
    machine.old_python("if [[ $2 == pip ]]; then [[ $3 == --version ]]; exit; fi")
    ended = machine.venv()
    assert (ended.returncode, ended.stderr) == (1, FETCHING + NOT_FOUND)


def test_without_any_python_it_is_told_in_a_sentence(machine: Machine) -> None:
    ended = machine.venv()
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", NOT_FOUND)


def test_python_on_the_path_needs_no_uv(machine: Machine) -> None:
    machine.script("python3", '#!/usr/bin/env bash\nexec {python} "$@"\n', python=real_python())
    made = machine.venv()
    assert (made.returncode, made.stderr) == (0, "")
    assert not (machine.clone / ".uv").exists()
