"""Authentication: bearer tokens (JWT), their scopes, and the sites they may write for."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ingest.refusals import RefusedError
from ingest.settings import ApiSettings, SettingsError

WRITE_EVENTS = "events:write"
READ_STATUS = "status:read"

_JWKS_TIMEOUT_SECONDS = 5.0
_DEVELOPMENT_SECONDS = 12 * 3600

# Returns the key that verifies a token.
_Keys = Callable[[str], Awaitable[Any]]

_REALM = 'Bearer realm="rehab-tracking"'
_BEARER = HTTPBearer(auto_error=False, bearerFormat="JWT", scheme_name="token")


class Caller(NamedTuple):
    """Who holds a token. `sites` are the only sites it may write for; null means any."""

    scopes: frozenset[str]
    sites: frozenset[str] | None

    def may_write_for(self, site_id: str | None) -> bool:
        """Whether this caller may send events of this site."""
        return self.sites is None or site_id in self.sites


class Verifier:
    """Verifies tokens with the one kind of key that the settings name."""

    def __init__(self, settings: ApiSettings) -> None:
        """Raises SettingsError for an unusable key."""
        # The settings choose the algorithm. A token that could would choose `none`, or use the public key
        # as an HMAC secret.
        self._algorithm, self._key = _keys(settings)
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        stated = {"exp": True, "aud": self._audience, "iss": self._issuer}
        self._options: Any = {
            "require": [claim for claim, needed in stated.items() if needed],
            "verify_aud": bool(self._audience),
        }

    async def caller(self, token: str) -> Caller:
        """Who holds the token. Raises RefusedError: 401 for an invalid token, 503 without its keys."""
        try:
            claims = jwt.decode(
                token,
                await self._key(token),
                algorithms=[self._algorithm],
                options=self._options,
                audience=self._audience,
                issuer=self._issuer,
            )
            return Caller(_scopes(claims), _sites(claims))
        except jwt.ExpiredSignatureError:
            raise _unauthorized("The token has expired.") from None
        except jwt.PyJWKClientConnectionError:
            raise RefusedError(
                503, "keys_unavailable", "The keys that tokens are checked with cannot be reached."
            ) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _unauthorized("The token is not valid.") from None


def _keys(settings: ApiSettings) -> tuple[str, _Keys]:
    if settings.jwt_secret:
        return "HS256", _fixed(settings.jwt_secret.get_secret_value())
    if settings.jwt_public_key_file:
        try:
            key = load_pem_public_key(settings.jwt_public_key_file.read_bytes())
        except (ValueError, OSError):
            raise SettingsError("REHAB_JWT_PUBLIC_KEY_FILE holds no public key in PEM form.") from None
        return "RS256", _fixed(key)
    client = jwt.PyJWKClient(str(settings.jwt_jwks_url), timeout=_JWKS_TIMEOUT_SECONDS)

    async def from_set(token: str) -> Any:
        return await asyncio.to_thread(client.get_signing_key_from_jwt, token)

    return "RS256", from_set


def _fixed(key: Any) -> _Keys:
    async def fixed(_token: str) -> Any:
        return key

    return fixed


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    stated = claims.get("scope", "")
    return frozenset(stated.split() if isinstance(stated, str) else _texts(stated))


def _sites(claims: dict[str, Any]) -> frozenset[str] | None:
    return frozenset(_texts(claims["sites"])) if "sites" in claims else None


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError
    return value


def _unauthorized(message: str) -> RefusedError:
    challenge = {"WWW-Authenticate": f'{_REALM}, error="invalid_token"'}
    return RefusedError(401, "unauthorized", message, challenge)


def requires(scope: str) -> Callable[..., Awaitable[Caller]]:
    """A dependency that returns the caller.

    It raises RefusedError: 401 without a valid token, 403 without the scope.
    """

    async def authorized(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        if credentials is None:
            raise RefusedError(401, "unauthorized", "A bearer token is needed.", {"WWW-Authenticate": _REALM})
        verifier: Verifier = request.app.state.verifier
        caller = await verifier.caller(credentials.credentials)
        if scope not in caller.scopes:
            challenge = {"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'}
            raise RefusedError(403, "forbidden", f"The token does not have the scope {scope}.", challenge)
        return caller

    return authorized


def new_secret() -> str:
    """A random secret for HS256 tokens."""
    return secrets.token_urlsafe(32)


def development_token(secret: str) -> str:
    """A token with every scope, valid for 12 hours."""
    claims = {"exp": int(time.time()) + _DEVELOPMENT_SECONDS, "scope": f"{WRITE_EVENTS} {READ_STATUS}"}
    return jwt.encode(claims, secret, algorithm="HS256")
