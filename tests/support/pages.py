"""The documents, cut into what tests compare with the code."""

import re
import subprocess
from functools import cache
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@cache
def tracked() -> frozenset[str]:
    """The paths of all files of the repository, and of new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    return frozenset(path for path in listed.stdout.splitlines() if (ROOT / path).exists())


@cache
def pages() -> dict[str, str]:
    """README.md and everything under docs/, by path."""
    paths = [path for path in sorted(tracked()) if path == "README.md" or path.startswith("docs/")]
    return {path: read(path) for path in paths if path.endswith(".md")}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """From a heading to the next heading."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, title
    return match[1]


def blocks(text: str, language: str) -> list[str]:
    return [body for _, found, body in _FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """Without fenced blocks."""
    return _FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` ", text, re.MULTILINE)


def shell_lines(text: str) -> list[str]:
    """The commands of a page, each on one line, with the values that the page gives its variables."""
    shell = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    values = {"PROJECT": "my-project", "TOKEN": "a-token"} | dict(re.findall(r"\b([A-Z]+)=(\S+)", shell))
    return [line.strip() for line in Template(shell).safe_substitute(values).splitlines() if line.strip()]


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
