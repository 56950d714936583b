"""Login of the dashboard: secrets on disk, sessions, rate limit."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_telemetry.auth import (
    AUTH_FILE,
    PASSWORD_FILE,
    TOKEN_FILE,
    AuthError,
    AuthPolicy,
    DashboardAuth,
    LoginLimiter,
    LoginRefused,
    generate_password,
)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


def open_auth(path: Path, clock: Time, **kwargs) -> DashboardAuth:
    return DashboardAuth.open(path, clock=clock, monotonic=clock, **kwargs)


def password(path: Path) -> str:
    return (path / PASSWORD_FILE).read_text().strip()


def test_the_first_start_tells_the_password_once(tmp_path: Path, clock: Time) -> None:
    told: list[tuple[str, Path]] = []
    for _ in range(2):
        auth = open_auth(tmp_path / 'state', clock, announce=lambda p, f: told.append((p, f)))
    assert told == [(password(tmp_path / 'state'), tmp_path / 'state' / PASSWORD_FILE)]
    assert auth.session_valid(auth.login(told[0][0], 'here'))


def test_secrets_are_private_and_the_password_is_only_a_hash(tmp_path: Path, clock: Time) -> None:
    open_auth(tmp_path, clock)
    for name in (AUTH_FILE, PASSWORD_FILE, TOKEN_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    stored = (tmp_path / AUTH_FILE).read_text()
    assert password(tmp_path) not in stored
    assert json.loads(stored)['password_hash'].startswith('$argon2id$')
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
        (AUTH_FILE, PASSWORD_FILE, TOKEN_FILE)
    )


def test_an_open_file_is_closed_again(tmp_path: Path, clock: Time) -> None:
    open_auth(tmp_path, clock)
    (tmp_path / AUTH_FILE).chmod(0o644)
    open_auth(tmp_path, clock)
    assert stat.S_IMODE((tmp_path / AUTH_FILE).stat().st_mode) == 0o600


def test_the_password_file_may_be_deleted(tmp_path: Path, clock: Time) -> None:
    open_auth(tmp_path, clock)
    word = password(tmp_path)
    (tmp_path / PASSWORD_FILE).unlink()
    auth = open_auth(tmp_path, clock)
    assert auth.session_valid(auth.login(word, 'here'))
    assert not (tmp_path / PASSWORD_FILE).exists()


@pytest.mark.parametrize(
    'content', ['', '{}', 'null', '[]', '{"password_hash": "plain", "session_key": "00"}']
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, clock: Time, content: str) -> None:
    (tmp_path / AUTH_FILE).write_text(content)
    with pytest.raises(AuthError, match=AUTH_FILE):
        open_auth(tmp_path, clock)


def test_passwords_differ_and_are_long() -> None:
    words = {generate_password() for _ in range(200)}
    assert len(words) == 200
    assert all(len(w) == 19 and w.count('-') == 3 for w in words)


def test_a_wrong_password_is_refused(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock)
    for wrong in ('', 'x', password(tmp_path)[:-1], password(tmp_path) + 'x' * 100_000):
        clock.now += 4000.0
        with pytest.raises(LoginRefused) as refused:
            auth.login(wrong, 'here')
        assert refused.value.retry_after == 0.0


def test_too_many_wrong_passwords_lock_the_address(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock, policy=AuthPolicy(free_failures=3, first_lock=15.0))
    for _ in range(3):
        with pytest.raises(LoginRefused, match='Wrong'):
            auth.login('wrong', 'there')
    with pytest.raises(LoginRefused, match='Wait 15 s') as refused:
        auth.login(password(tmp_path), 'there')  # the right one: the lock holds all the same
    assert refused.value.retry_after == pytest.approx(15.0)
    assert auth.login(password(tmp_path), 'elsewhere')
    clock.now += 15.1
    assert auth.login(password(tmp_path), 'there')


def test_the_lock_doubles_up_to_a_limit_and_is_forgotten(clock: Time) -> None:
    policy = AuthPolicy(free_failures=2, first_lock=10.0, longest_lock=60.0, forget_after=1000.0)
    limiter = LoginLimiter(policy, clock)
    waits = []
    for _ in range(6):
        limiter.failed('a')
        waits.append(limiter.wait('a'))
        clock.now += waits[-1]
    assert waits == [0.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    clock.now += 1000.0
    limiter.failed('a')
    assert limiter.wait('a') == 0.0


def test_many_addresses_together_are_limited_and_use_bounded_memory(clock: Time) -> None:
    limiter = LoginLimiter(AuthPolicy(total_failures=50, total_window=60.0), clock)
    for i in range(3000):
        limiter.failed(f'address {i}')
    assert limiter.wait('a new one') == pytest.approx(60.0)
    assert len(limiter._failures) <= LoginLimiter.MOST_ADDRESSES
    clock.now += 60.0
    assert limiter.wait('a new one') == 0.0


def test_a_session_ends(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock, policy=AuthPolicy(session_life=100.0))
    token = auth.login(password(tmp_path), 'here')
    clock.now += 99.0
    assert auth.session_valid(token)
    clock.now += 2.0
    assert not auth.session_valid(token)


def test_sessions_and_log_outs_survive_a_restart(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock)
    kept, ended = (auth.login(password(tmp_path), 'here') for _ in range(2))
    auth.logout(ended)
    for again in (auth, open_auth(tmp_path, clock)):
        assert again.session_valid(kept)
        assert not again.session_valid(ended)


def test_sessions_of_another_site_do_not_count(tmp_path: Path, clock: Time) -> None:
    here, there = open_auth(tmp_path / 'a', clock), open_auth(tmp_path / 'b', clock)
    token = there.login(password(tmp_path / 'b'), 'x')
    assert not here.session_valid(token)
    assert here.cookie_name != there.cookie_name


def test_another_password_ends_all_sessions(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock)
    old = password(tmp_path)
    token = auth.login(old, 'here')
    with pytest.raises(ValueError, match='at least 10'):
        auth.set_password('short')
    auth.set_password('a much better one')
    assert not auth.session_valid(token)
    assert not (tmp_path / PASSWORD_FILE).exists()
    auth = open_auth(tmp_path, clock)
    with pytest.raises(LoginRefused):
        auth.login(old, 'here')
    assert auth.session_valid(auth.login('a much better one', 'here'))


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[DashboardAuth, str]:
    path = tmp_path_factory.mktemp('auth')
    auth = DashboardAuth.open(path)
    return auth, auth.login(password(path), 'x')


@given(st.one_of(st.none(), st.text(max_size=500)))
@settings(max_examples=300)
def test_no_text_is_a_session(shared: tuple[DashboardAuth, str], token: str | None) -> None:
    assert not shared[0].session_valid(token)
    assert not shared[0].bearer_valid(token)


def test_a_session_with_one_letter_changed_is_refused(shared: tuple[DashboardAuth, str]) -> None:
    auth, token = shared
    assert auth.session_valid(token)
    for i in range(len(token)):
        changed = token[:i] + ('A' if token[i] != 'A' else 'B') + token[i + 1 :]
        assert not auth.session_valid(changed), i


def test_the_token_for_programs(tmp_path: Path, clock: Time) -> None:
    auth = open_auth(tmp_path, clock)
    token = (tmp_path / TOKEN_FILE).read_text().strip()
    assert auth.bearer_valid(f'Bearer {token}') and auth.bearer_valid(f'bearer {token}')
    for wrong in (
        None,
        '',
        token,
        f'Basic {token}',
        'Bearer',
        'Bearer ',
        f'Bearer {token}x',
        'Bearer é',
    ):
        assert not auth.bearer_valid(wrong)
