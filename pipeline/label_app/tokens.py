"""Tokens of an OpenID Connect provider: signed by it, for this server, and not for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests

KEY_SECONDS = 300.0
"""After so long the provider is asked for its key again, which it may have changed."""

RETRY_SECONDS = 10.0
"""And after so long, when it did not answer."""

_LEEWAY = 10  # seconds that clocks may differ
_ACCOUNT = {"account"}  # the audience that Keycloak writes where nobody configured one

logger = logging.getLogger(__name__)


class TokenError(ValueError):
    """A token is not accepted; the message says why."""


class ProviderError(RuntimeError):
    """The provider does not tell its key."""


class Verifier:
    """Verifies tokens of one realm.

    Args:
        realm: address of the realm, at which its public key is.
        audience: whom tokens have to be for: the client's id.
        issuer: that tokens have to name; None for ``realm``.
        timeout: seconds to wait for the provider.
        ask: fetches the realm's description; another one for tests.
    """

    def __init__(
        self,
        realm: str,
        audience: str,
        issuer: str | None = None,
        timeout: float = 10.0,
        ask: Callable[[str, float], Mapping[str, Any]] | None = None,
    ) -> None:
        self.realm, self.audience, self.issuer = realm, audience, issuer or realm
        self._timeout, self._ask = timeout, ask or _ask_realm
        self._key, self._asked = "", float("-inf")
        self._lock = threading.Lock()

    def claims(self, token: str) -> dict[str, Any]:
        """What a token says, if it is to be believed.

        Raises:
            TokenError: it is not.
            ProviderError: nobody can tell.
        """
        import jwt

        if len(token) > 1 << 14:
            raise TokenError("the token is too long")
        try:
            said = jwt.decode(
                token,
                self._public_key(),
                algorithms=["RS256"],
                issuer=self.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise TokenError("the token has expired") from None
        except jwt.InvalidIssuerError:
            raise TokenError("the token is of another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenError(f"the token says no '{error.claim}'") from None
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError):
            raise TokenError("the token is not one that this server's realm has signed") from None
        self._check_audience(said)
        return said

    def _check_audience(self, said: Mapping[str, Any]) -> None:
        named = said.get("aud", [])
        named = [named] if isinstance(named, str) else named
        audiences = set(named) if isinstance(named, list) and all(map(_is_text, named)) else {""}
        if self.audience in audiences:
            return
        if audiences <= _ACCOUNT and said.get("azp") == self.audience:
            return
        raise TokenError(f"the token is not for {self.audience!r}")

    def _public_key(self) -> str:
        with self._lock:
            now = time.monotonic()
            if now - self._asked > (KEY_SECONDS if self._key else RETRY_SECONDS):
                self._asked = now
                try:
                    body = str(self._ask(self.realm, self._timeout)["public_key"])
                    self._key = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----"
                except Exception as error:  # whatever is there instead of a realm
                    logger.error("the realm does not tell its key: %s", error)
            if not self._key:
                raise ProviderError("the server of the logins does not answer; try again later")
            return self._key


def roles_of(claims: Mapping[str, Any], path: str) -> list[str]:
    """The roles that a token gives, none where it says nothing of them.

    Args:
        claims: of the token.
        path: of the roles in there, such as ``realm_access#roles``.
    """
    found: Any = claims
    for name in path.split("#"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return [role for role in found if _is_text(role)] if isinstance(found, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _ask_realm(address: str, timeout: float) -> Mapping[str, Any]:
    answer = requests.get(address, timeout=timeout)
    answer.raise_for_status()
    return answer.json()
