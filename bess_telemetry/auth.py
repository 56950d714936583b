"""Who may use the dashboard: one password made at first start, signed sessions, a rate limit.

The state directory holds `dashboard-auth.json` (argon2 hash, session key, revoked sessions),
`dashboard-password.txt` (plain text, written once, to be deleted by the user) and
`dashboard-token.txt` (for programs). All have mode 0600. Deleting `dashboard-auth.json` makes the
next start generate a new password.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time as _time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

AUTH_FILE = 'dashboard-auth.json'
PASSWORD_FILE = 'dashboard-password.txt'
TOKEN_FILE = 'dashboard-token.txt'

#: Letters that nobody mistakes for another one when reading them off a screen.
_ALPHABET = 'abcdefghjkmnpqrstuvwxyz23456789'

# OWASP's smallest argon2id setting: a gateway has little memory, and a generated password
# has more than 70 bits, so that the hash need not make up for a weak one.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


class AuthError(Exception):
    """The stored secrets cannot be used; the text says which file and why."""


class LoginRefused(Exception):
    """A login was refused. `retry_after`: s until the next try; 0 for a wrong password."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True)
class AuthPolicy:
    """Numbers of the login: how long a session lasts and how many wrong passwords are allowed."""

    session_life: float = 7 * 86400.0  # s
    free_failures: int = 5  # wrong passwords of one address before it is locked
    first_lock: float = 15.0  # s, doubles with each further wrong password
    longest_lock: float = 900.0  # s
    forget_after: float = 3600.0  # s without a failure, then an address starts anew
    total_failures: int = 60  # wrong passwords of all addresses together ...
    total_window: float = 60.0  # s ... within this time, then all wait for its end


def generate_password() -> str:
    """A new password, e.g. "hk7m-wq2x-9ndt-bv4c" (79 bits)."""
    return '-'.join(''.join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))


class LoginLimiter:
    """Counts wrong passwords per address and over all; bounded memory. Thread safe."""

    MOST_ADDRESSES = 1000

    def __init__(self, policy: AuthPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # address -> (count, last)
        self._window_start = -float('inf')
        self._window_count = 0

    def wait(self, address: str) -> float:
        """Seconds this address has to wait before its next attempt; 0 = it may try."""
        with self._lock:
            now, p = self._clock(), self._policy
            left = 0.0
            count, last = self._failures.get(address, (0, now))
            if count >= p.free_failures and now - last < p.forget_after:
                doublings = min(count - p.free_failures, 20)
                left = last + min(p.first_lock * 2.0**doublings, p.longest_lock) - now
            if self._window_count >= p.total_failures:
                left = max(left, self._window_start + p.total_window - now)
            return max(0.0, left)

    def failed(self, address: str) -> None:
        """Note a wrong password."""
        with self._lock:
            now = self._clock()
            if now - self._window_start >= self._policy.total_window:
                self._window_start, self._window_count = now, 0
            self._window_count += 1
            count, last = self._failures.pop(address, (0, now))
            if now - last >= self._policy.forget_after:
                count = 0
            while len(self._failures) >= self.MOST_ADDRESSES:
                self._failures.pop(next(iter(self._failures)))  # the one that failed longest ago
            self._failures[address] = (count + 1, now)

    def succeeded(self, address: str) -> None:
        """A right password clears the address."""
        with self._lock:
            self._failures.pop(address, None)


class DashboardAuth:
    """Checks passwords, sessions and tokens of one dashboard. Thread safe; make it with `open`."""

    def __init__(
        self,
        path: Path,
        stored: dict[str, object],
        token: str,
        *,
        policy: AuthPolicy,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._path = path
        self._hash = str(stored['password_hash'])
        self._key = bytes.fromhex(str(stored['session_key']))
        revoked = stored.get('revoked', {})
        self._revoked = (
            {str(k): float(v) for k, v in revoked.items()} if isinstance(revoked, dict) else {}
        )
        self._token = token
        self._policy = policy
        self._clock = clock
        self._limiter = LoginLimiter(policy, monotonic)
        self._lock = threading.Lock()
        self._hashing = threading.Lock()

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        announce: Callable[[str, Path], None] | None = None,
        policy: AuthPolicy | None = None,
        clock: Callable[[], float] = _time.time,
        monotonic: Callable[[], float] = _time.monotonic,
    ) -> DashboardAuth:
        """Read the secrets of `state_dir`, or make them at the first start.

        announce: called once, with the new password in plain text and the file that holds it.
        Raises AuthError for files that exist and cannot be used; OSError as the system says.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        path = state_dir / AUTH_FILE
        password = ''
        if not path.exists():
            password = generate_password()
            # The plain text goes first: a crash in between leaves no hash whose password is lost.
            _write_private(state_dir / PASSWORD_FILE, password + '\n')
            stored = {
                'password_hash': _HASHER.hash(password),
                'session_key': secrets.token_hex(32),
                'revoked': {},
            }
            _write_private(path, json.dumps(stored, indent=1))
        token_path = state_dir / TOKEN_FILE
        if not token_path.exists():
            _write_private(token_path, secrets.token_urlsafe(32) + '\n')
        auth = cls(
            path,
            _read_secrets(path),
            _read_token(token_path),
            policy=policy or AuthPolicy(),
            clock=clock,
            monotonic=monotonic,
        )
        if password and announce is not None:
            announce(password, state_dir / PASSWORD_FILE)
        return auth

    @property
    def cookie_name(self) -> str:
        """Name of the session cookie, an own one per site: cookies do not know ports."""
        return 'bess_session_' + hashlib.sha256(str(self._path.resolve()).encode()).hexdigest()[:8]

    @property
    def session_life(self) -> float:
        """How long a session lasts, s."""
        return self._policy.session_life

    def login(self, password: str, address: str) -> str:
        """Check a password; a session token when it is right. Takes about 0.05 s.

        Raises LoginRefused, also for the right password while the address is locked.
        """
        # One at a time: a flood of attempts must not take memory and all cores of a gateway.
        with self._hashing:
            wait = self._limiter.wait(address)
            if wait > 0:
                raise LoginRefused(f'Too many wrong passwords. Wait {wait:.0f} s.', wait)
            if not self._password_right(password):
                self._limiter.failed(address)
                raise LoginRefused('Wrong password.')
            self._limiter.succeeded(address)
        return self._new_session()

    def session_valid(self, token: str | None) -> bool:
        """Whether a session token was issued here, has not ended and was not logged out."""
        found = self._session(token)
        if found is None:
            return False
        with self._lock:
            return found[0] not in self._revoked

    def logout(self, token: str | None) -> None:
        """End a session for good, over restarts too."""
        found = self._session(token)
        if found is None:
            return
        with self._lock:
            now = self._clock()
            self._revoked = {sid: end for sid, end in self._revoked.items() if end > now}
            self._revoked[found[0]] = found[1]
            self._save()

    def bearer_valid(self, header: str | None) -> bool:
        """Whether an `Authorization` header carries the token of the state directory."""
        scheme, _, token = (header or '').partition(' ')
        return scheme.lower() == 'bearer' and hmac.compare_digest(
            token.strip().encode(), self._token.encode()
        )

    def set_password(self, password: str) -> None:
        """Store another password; ends all sessions. Raises ValueError for one under 10 letters."""
        if len(password) < 10:
            raise ValueError(f'the password has {len(password)} letters, at least 10 are needed')
        hashed = _HASHER.hash(password)
        with self._lock:
            self._hash, self._key, self._revoked = hashed, secrets.token_bytes(32), {}
            self._save()
            (self._path.parent / PASSWORD_FILE).unlink(missing_ok=True)

    def _password_right(self, password: str) -> bool:
        try:
            return _HASHER.verify(self._hash, password[:1024])
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as error:
            raise AuthError(
                f'{self._path}: the stored password hash cannot be checked: {error}'
            ) from error

    def _new_session(self) -> str:
        body = f'{secrets.token_hex(16)}.{self._clock() + self._policy.session_life:.0f}'
        return urlsafe_b64encode(f'{body}.{self._sign(body)}'.encode()).decode()

    def _session(self, token: str | None) -> tuple[str, float] | None:
        """(id, end in s) of a genuine session that has not ended."""
        if not token or len(token) > 400:
            return None
        try:
            sid, end, signature = urlsafe_b64decode(token.encode()).decode('ascii').split('.')
        except ValueError:  # not base64, not ASCII, or not three parts
            return None
        if not hmac.compare_digest(signature.encode(), self._sign(f'{sid}.{end}').encode()):
            return None
        return (sid, float(end)) if float(end) > self._clock() else None

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    def _save(self) -> None:
        stored = {
            'password_hash': self._hash,
            'session_key': self._key.hex(),
            'revoked': self._revoked,
        }
        _write_private(self._path, json.dumps(stored, indent=1))


def _read_secrets(path: Path) -> dict[str, object]:
    try:
        stored = json.loads(path.read_text())
        bytes.fromhex(stored['session_key'])
        if not stored['password_hash'].startswith('$argon2'):
            raise ValueError('password_hash is not an argon2 hash')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuthError(
            f'{path}: not readable as dashboard secrets ({error}); delete it to get a new password'
        ) from error
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return dict(stored)


def _read_token(path: Path) -> str:
    token = path.read_text().strip()
    if len(token) < 20:
        raise AuthError(f'{path}: the token is too short; delete the file to get a new one')
    return token


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step; nobody but the owner can read it at any moment."""
    part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, 'w') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
