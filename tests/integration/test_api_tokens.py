"""Who may call: every token that is not just right is refused, over HTTP."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from tests.integration.api import Api, bearer, token
from tests.integration.streaming import event

Serve = Callable[..., Api]

EVENT = event("exercise_session", "by-token", duration_minutes=20).envelope


def post(api: Api, text: str | None) -> httpx.Response:
    headers = bearer(text) if text is not None else {}
    return httpx.post(f"{api.url}/api/v1/events", json=EVENT, headers=headers)


def part(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def parts(algorithm: str) -> str:
    claims = {"exp": time.time() + 600, "scope": "events:write"}
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}"


def unsigned(algorithm: str = "none") -> str:
    return parts(algorithm) + "."


def public_pem(key: RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


RSA_KEY = generate_private_key(65537, 2048)
FOREIGN_RSA_KEY = generate_private_key(65537, 2048)

REFUSED = {
    "missing": None,
    "empty": "..",
    "no token": "a.b.c",
    "unsigned": unsigned(),
    "unsigned, otherwise spelt": unsigned("NoNe"),
    "signature cut off": token().rpartition(".")[0] + ".",
    "foreign key": token("somebody-elses-secret-of-the-same-kind"),
    "foreign algorithm": token("x" * 64, "HS512"),
    "asymmetric": token(RSA_KEY, "RS256"),
    "expired": token(exp=int(time.time()) - 60),
    "never expires": token(exp=None),
    "odd expiry": token(exp="tomorrow"),
    "not yet valid": token(nbf=int(time.time()) + 600),
    "odd scope": token(scope={"events:write": True}),
    "odd sites": token(sites="north"),
    "deep header": f"{base64.urlsafe_b64encode(b'[' * 20_000).decode()}.e30.e30",
}


def test_every_token_that_is_not_just_right_is_refused(api: Api) -> None:
    assert post(api, token()).status_code == 201
    for what, text in REFUSED.items():
        answer = post(api, text)
        assert (what, answer.status_code) == (what, 401)
        assert answer.json()["error"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    basic = httpx.post(f"{api.url}/api/v1/events", json=EVENT, auth=("user", "password"))
    assert basic.status_code == 401


@pytest.mark.parametrize(
    "scope", ["", "status:read", "events:writer", "events:write2", ["status:read"], None]
)
def test_a_token_without_the_scope_may_not_write(api: Api, scope: Any) -> None:
    answer = post(api, token(scope=scope))
    assert answer.status_code == 403
    assert answer.json()["message"] == "The token does not have the scope events:write."
    assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


def test_a_scope_may_be_one_of_several(api: Api) -> None:
    assert post(api, token(scope="status:read events:write")).status_code == 201
    assert post(api, token(scope=["status:read", "events:write"])).status_code == 201


def test_audience_and_issuer_are_required_if_they_are_set(serve: Serve) -> None:
    api = serve(REHAB_JWT_AUDIENCE="rehab", REHAB_JWT_ISSUER="clinic")
    assert post(api, token(aud="rehab", iss="clinic")).status_code == 201
    assert post(api, token(aud=["other", "rehab"], iss="clinic")).status_code == 201
    wrong: list[dict[str, Any]] = [
        {"aud": "other", "iss": "clinic"},
        {"aud": "rehab", "iss": "other"},
        {"aud": "rehab"},
        {"iss": "clinic"},
    ]
    for claims in wrong:
        assert post(api, token(**claims)).status_code == 401


def test_a_public_key_accepts_only_what_its_owner_signed(serve: Serve, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(public_pem(RSA_KEY))
    api = serve(REHAB_JWT_SECRET="", REHAB_JWT_PUBLIC_KEY_FILE=str(pem))
    assert post(api, token(RSA_KEY, "RS256")).status_code == 201
    # The public key, which anybody may have, taken for a secret.
    for text in (unsigned(), token(), token(FOREIGN_RSA_KEY, "RS256"), hmac_with(public_pem(RSA_KEY))):
        assert post(api, text).status_code == 401


def hmac_with(key: bytes) -> str:
    """A token signed with HS256 and a key that PyJWT itself would refuse to sign with."""
    signed = parts("HS256")
    digest = hmac.new(key, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@pytest.fixture
def key_set() -> Iterator[str]:
    """The URL of a JWK set with one key."""
    key = json.loads(RSAAlgorithm.to_jwk(RSA_KEY.public_key()))
    content = json.dumps({"keys": [key | {"kid": "one", "use": "sig", "alg": "RS256"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        server.shutdown()


def test_keys_may_come_from_a_key_set(serve: Serve, key_set: str) -> None:
    api = serve(REHAB_JWT_SECRET="", REHAB_JWT_JWKS_URL=key_set)
    assert post(api, token(RSA_KEY, "RS256", {"kid": "one"})).status_code == 201
    for text in (
        token(FOREIGN_RSA_KEY, "RS256", {"kid": "one"}),
        token(RSA_KEY, "RS256", {"kid": "two"}),
        token(RSA_KEY, "RS256"),
        unsigned(),
    ):
        assert post(api, text).status_code == 401


def test_a_key_set_that_cannot_be_reached_is_told(serve: Serve) -> None:
    api = serve(REHAB_JWT_SECRET="", REHAB_JWT_JWKS_URL="http://127.0.0.1:1/jwks.json")
    answer = post(api, token(RSA_KEY, "RS256", {"kid": "one"}))
    assert (answer.status_code, answer.json()["error"]) == (503, "keys_unavailable")


def test_development_prints_a_token_that_works(serve: Serve) -> None:
    api = serve(REHAB_JWT_SECRET="", REHAB_DEVELOPMENT="true")
    (printed,) = [line.split()[1] for line in api.log.read_text().splitlines() if line.startswith("token ")]
    assert post(api, printed).status_code == 201
    assert post(api, token()).status_code == 401
    assert post(api, None).status_code == 401
