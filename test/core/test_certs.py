"""Certificates: what they say, who may read the keys, what is refused."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from bess_core import certs
from bess_core.cli.main import main

DAY = 86400.0
NOW = 1.8e9


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    before = os.umask(0)  # the modes must not depend on it
    try:
        certs.init(tmp_path / 'pki', now=NOW)
        certs.issue(tmp_path / 'pki', 'owner', 'server', hosts=['home.example.org', '192.0.2.7', '::1'], now=NOW)
        certs.issue(tmp_path / 'pki', 'alice', 'client', now=NOW, days=30)
    finally:
        os.umask(before)
    return tmp_path / 'pki'


def test_what_certificates_say_and_who_may_read_keys(pki: Path) -> None:
    assert pki.stat().st_mode & 0o777 == 0o700
    for key in pki.glob('*.key'):
        assert key.stat().st_mode & 0o777 == 0o600
    owner, alice = certs.facts(pki / 'owner.pem'), certs.facts(pki / 'alice.pem')
    assert (owner.kind, owner.names) == ('server', ('home.example.org', '192.0.2.7', '::1'))
    assert (alice.name, alice.kind) == ('alice', 'client')
    assert alice.ends == NOW + 30 * DAY and alice.begins < NOW
    assert certs.facts(pki / 'ca.pem').kind == 'ca'
    ssl.create_default_context(cafile=str(pki / 'ca.pem')).load_cert_chain(pki / 'owner.pem', pki / 'owner.key')


def test_problems_are_named_before_a_port_is_opened(pki: Path, tmp_path: Path) -> None:
    def said(name: str, kind: str, now: float = NOW, authority: Path = pki / 'ca.pem') -> str:
        return '; '.join(certs.problems(certs.pair(pki, name), authority, kind, now))

    assert said('owner', 'server') == said('alice', 'client') == ''
    assert 'is no server certificate' in said('alice', 'server')
    assert 'expired 2.0 days ago' in said('alice', 'client', NOW + 32 * DAY)
    assert 'valid only in' in said('alice', 'client', NOW - DAY)
    certs.init(tmp_path / 'other', now=NOW)
    assert 'was not issued by' in said('alice', 'client', authority=tmp_path / 'other' / 'ca.pem')
    (pki / 'alice.key').chmod(0o640)
    assert 'mode 0640' in said('alice', 'client')
    (pki / 'alice.key').write_bytes((pki / 'owner.key').read_bytes())
    assert 'is not the key of' in said('alice', 'client')
    (pki / 'alice.pem').write_text('rubbish')
    assert said('alice', 'client')
    assert said('nobody', 'client')


@pytest.mark.parametrize('name', ['', '*', 'a/b', '../x', 'Alice', 'a' * 65, 'ca', '-a', 'a b', 'ä'])
def test_names_that_could_mean_something_else_are_refused(pki: Path, name: str) -> None:
    with pytest.raises(certs.CertificateProblem):
        certs.issue(pki, name, 'client', now=NOW)


def test_nothing_is_overwritten_and_nonsense_is_refused(pki: Path) -> None:
    with pytest.raises(certs.CertificateProblem, match='exists already'):
        certs.init(pki)
    with pytest.raises(certs.CertificateProblem, match='exists already'):
        certs.issue(pki, 'alice', 'client', now=NOW)
    with pytest.raises(certs.CertificateProblem, match='host names'):
        certs.issue(pki, 'x', 'server', now=NOW)
    with pytest.raises(certs.CertificateProblem, match='neither a host name'):
        certs.issue(pki, 'x', 'server', hosts=['a b'], now=NOW)
    with pytest.raises(certs.CertificateProblem, match='outlast'):
        certs.issue(pki, 'x', 'client', days=20000, now=NOW)
    for days in (0.0, -1.0, float('nan'), 1e9):
        with pytest.raises(certs.CertificateProblem):
            certs.issue(pki, 'x', 'client', days=days, now=NOW)
    assert not list(pki.glob('x.*'))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / 'pki')
    assert main(['certs', 'init', folder]) == 0
    assert main(['certs', 'issue', folder, 'owner', '--server', '--host', 'localhost']) == 0
    assert main(['certs', 'issue', folder, 'alice', '--client', '--days', '3']) == 0
    out = capsys.readouterr().out
    assert 'valid until' in out and 'PRIVATE' not in out
    assert main(['certs', 'list', folder]) == 0
    out = capsys.readouterr().out
    assert 'alice.pem' in out and 'days left' in out
    assert main(['certs', 'issue', folder, 'alice', '--client']) == 1
    assert 'exists already' in capsys.readouterr().err
    for words in (['issue', folder], ['issue', folder, 'x'], ['init', folder, 'x']):
        assert main(['certs', *words]) == 2
    assert main(['certs', 'issue', str(tmp_path / 'none'), 'x', '--client']) == 1
    assert main(['certs', 'list', str(tmp_path / 'none')]) == 1


def test_a_folder_without_an_authority_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(certs.CertificateProblem, match=r'no authority in .*none; `bess certs init .*none` makes one'):
        certs.issue(tmp_path / 'none', 'anna', 'client')
    with pytest.raises(certs.CertificateProblem, match=r'anna\.pem: No such file or directory$'):
        certs.load(certs.pair(tmp_path, 'anna'))
