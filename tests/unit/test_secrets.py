"""No key, token or password is in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SECRETS = {
    "private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "service account": rb'"private_key(?:_id)?"\s*:\s*"[^"]',
    "Google API key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "Google OAuth token": rb"\bya29\.[0-9A-Za-z_-]{20,}",
    "Google OAuth secret": rb"\bGOCSPX-[0-9A-Za-z_-]{20,}",
    "JSON web token": rb"\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
    "AWS key": rb"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "GitHub token": rb"\bgh[pousr]_[0-9A-Za-z]{36}\b",
    "password in a URL": rb"\b[a-z]+://[^\s/:@\"'{}]+:[^\s/@\"'{}]+@",
}
NAMES = re.compile(r"(^|/)(\.env(\..+)?|.*\.(pem|p12|pfx|jks|key)|id_[a-z0-9]+|credentials.*\.json)$")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    assert len(names) > 50
    return names


@pytest.mark.parametrize("what", SECRETS)
def test_no_tracked_file_holds_one(what: str) -> None:
    found = [name for name in tracked() if re.search(SECRETS[what], (ROOT / name).read_bytes())]
    assert found == []


def test_no_tracked_file_is_one_by_its_name() -> None:
    assert [name for name in tracked() if NAMES.search(name)] == []


# Put together here, so that this file does not hold what it looks for.
EXAMPLES = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "service account": '{"private_' + 'key": "x"}',
    "Google API key": "AIza" + "b" * 35,
    "Google OAuth token": "ya29." + "b" * 40,
    "Google OAuth secret": "GOCSPX-" + "b" * 28,
    "JSON web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0." + "b" * 43,
    "AWS key": "AKIA" + "B" * 16,
    "GitHub token": "ghp_" + "b" * 36,
    "password in a URL": "https://user:" + "word@host/",
}


@pytest.mark.parametrize("what", SECRETS)
def test_one_would_be_found(what: str) -> None:
    assert re.search(SECRETS[what], f"key={EXAMPLES[what]}\n".encode())
