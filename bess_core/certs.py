"""Certificates of a private certificate authority for mutual TLS, made with the `cryptography` library.

One folder holds the authority (`ca.pem`, `ca.key`) and one pair per party (`NAME.pem`, `NAME.key`). Keys are
P-256, readable by their owner only (mode 0600) and never overwritten. A server certificate may only serve
(extended key usage serverAuth, subject alternative names checked by clients), a client certificate may only ask
(clientAuth): a client cannot pass itself off as a server of the same authority. X.509 as in RFC 5280.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA = 'ca'
KINDS = ('server', 'client')
CA_DAYS, LEAF_DAYS = 3650.0, 397.0
SKEW_S = 300.0  # a certificate begins so much earlier: clocks of the parties differ
#: Also part of the key expressions that access rules are made of: nothing there may act as a wildcard.
NAME = re.compile(r'[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?')


class CertificateProblem(ValueError):
    """What was asked for cannot be made, or a file is not what it should be; in words."""


@dataclass(frozen=True)
class Pair:
    """Where a certificate and its key lie."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Facts:
    """What a certificate says. Times in s since the epoch."""

    name: str  # common name
    kind: str  # "ca", "server", "client", or "" for none of these
    names: tuple[str, ...]  # subject alternative names
    begins: float
    ends: float
    serial: str  # hexadecimal
    fingerprint: str  # SHA-256, hexadecimal


def pair(folder: Path, name: str) -> Pair:
    """Paths of a party's files."""
    return Pair(folder / f'{name}.pem', folder / f'{name}.key')


def init(folder: Path, *, organisation: str = 'bess', days: float = CA_DAYS, now: float | None = None) -> Pair:
    """A new authority in `folder` (made with mode 0700). Raises `CertificateProblem` when there is one already."""
    _days(days)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = pair(folder, CA)
    _absent(files)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
                         x509.NameAttribute(NameOID.COMMON_NAME, f'{organisation} authority')])
    builder = (_builder(subject, subject, key, days, now)
               .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
               .add_extension(_usage(ca=True), critical=True))
    _write(files, builder.sign(key, hashes.SHA256()), key)
    return files


def issue(folder: Path, name: str, kind: str, *, hosts: Sequence[str] = (), days: float = LEAF_DAYS,
          now: float | None = None, out: Path | None = None) -> Pair:
    """A certificate for one party, signed by the authority in `folder`.

    `kind`: "server" (needs `hosts`: the DNS names or addresses by which clients reach it) or "client" (`name`
    is its identity). `days` may not outlast the authority. Raises `CertificateProblem`.
    """
    _days(days)
    if not NAME.fullmatch(name) or name == CA:
        raise CertificateProblem(f'{name!r} is not a name: small letters, digits, - and _, at most 64, not "{CA}"')
    if kind not in KINDS:
        raise CertificateProblem(f'{kind!r} is none of {", ".join(KINDS)}')
    if kind == 'server' and not hosts:
        raise CertificateProblem('a server certificate needs the host names or addresses by which it is reached')
    if not pair(folder, CA).certificate.exists():
        raise CertificateProblem(f'no authority in {folder}; `bess certs init {folder}` makes one')
    authority, authority_key = load(pair(folder, CA))
    files = pair(out or folder, name)
    files.certificate.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _absent(files)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, authority.subject, key, days, now)
    if builder._not_valid_after > authority.not_valid_after_utc.replace(tzinfo=None):  # type: ignore[operator]
        raise CertificateProblem(f'{days:g} days outlast the authority (ends {authority.not_valid_after_utc:%Y-%m-%d})')
    usage = ExtendedKeyUsageOID.SERVER_AUTH if kind == 'server' else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (builder
               .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
               .add_extension(_usage(ca=False), critical=True)
               .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
               .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts or [name]]), critical=False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                              critical=False))
    _write(files, builder.sign(authority_key, hashes.SHA256()), key)
    return files


def load(files: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Certificate and key. Raises `CertificateProblem` when one is missing, damaged, or does not fit the other."""
    certificate = _certificate(files.certificate)
    try:
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateProblem(_words(files.key, error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateProblem(f'{files.key} is not the key of {files.certificate}')
    return certificate, key


def facts(path: Path) -> Facts:
    """What the certificate in a file says. Raises `CertificateProblem`."""
    certificate = _certificate(path)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Facts(
        str(common[0].value) if common else '', _kind(certificate), _hosts(certificate),
        certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp(),
        f'{certificate.serial_number:x}', certificate.fingerprint(hashes.SHA256()).hex())


def problems(files: Pair, authority: Path, kind: str, now: float) -> list[str]:
    """What would keep this party from being accepted, in words; empty = nothing.

    Looked at before a port is opened, because a TLS library only says that the handshake failed.
    """
    try:
        certificate, _ = load(files)
        issuer = _certificate(authority)
        said = facts(files.certificate)
    except CertificateProblem as error:
        return [str(error)]
    found = []
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        found.append(f'{files.certificate} was not issued by {authority}')
    if said.kind != kind:
        found.append(f'{files.certificate} is no {kind} certificate')
    for path, until in ((files.certificate, said.ends), (authority, issuer.not_valid_after_utc.timestamp())):
        if now >= until:
            found.append(f'{path} expired {(now - until) / 86400.0:.1f} days ago')
    if now < said.begins:
        found.append(f'{files.certificate} is valid only in {(said.begins - now) / 86400.0:.1f} days')
    mode = files.key.stat().st_mode & 0o777
    if mode & 0o077:
        found.append(f'{files.key} can be read by others (mode {mode:04o}); it must be 0600')
    return found


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateProblem(_words(path, error)) from error


def _kind(certificate: x509.Certificate) -> str:
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return CA
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return ''
    return {(ExtendedKeyUsageOID.SERVER_AUTH,): 'server', (ExtendedKeyUsageOID.CLIENT_AUTH,): 'client'}.get(
        tuple(usages), '')


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(n.value) for n in names)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float,
             now: float | None) -> x509.CertificateBuilder:
    at = datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - timedelta(seconds=SKEW_S)).not_valid_after(at + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False)


def _words(path: Path, error: Exception) -> str:
    return f'{path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}'


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if not re.fullmatch(r'[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})', text):
        raise CertificateProblem(f'{text!r} is neither a host name nor an address')
    return x509.DNSName(text)


def _days(days: float) -> None:
    if not 0.0 < days <= 36500.0:
        raise CertificateProblem(f'{days} days is not between 0 and 36500')


def _absent(files: Pair) -> None:
    for path in (files.certificate, files.key):
        if path.exists():
            raise CertificateProblem(f'{path} exists already; nothing is overwritten')


def _write(files: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                            serialization.NoEncryption())
    for path, data, mode in ((files.key, pem, 0o600),
                             (files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(file, 'wb') as stream:
            os.fchmod(file, mode)  # whatever the umask
            stream.write(data)
