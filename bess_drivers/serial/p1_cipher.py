"""Encrypted telegrams of a P1 port (Luxembourg, Austria): DLMS general-global-cipher, AES-128-GCM. Pure.

A frame is the tag 0xDB, the length of the system title (8) and the title, the length of the rest (one byte, or 0x81 or
0x82 and one or two bytes), the security control byte 0x30, a counter of four bytes, the encrypted telegram, and a
tag of twelve bytes. Nonce: title and counter; authenticated besides: control byte and authentication key. Source: P1
specification of Luxembourg (E-Meter P1, 3.2.5), DLMS Green Book, security suite 0. Inside is a telegram as without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bess_drivers.device import BadChecksum, BadFrame, DeviceError, Refused
from bess_drivers.owner_file import read_owned
from bess_drivers.serial.p1_telegram import LONGEST, check

TAG, TITLE = 0xDB, 8
AUTHENTICATED_AND_ENCRYPTED = 0x30
COUNTER, GCM_TAG = 4, 12
#: what Luxembourg prints in its specification for every meter: it only makes the tag, it is no secret
PUBLIC_AUTHENTICATION = bytes.fromhex('00112233445566778899AABBCCDDEEFF')


@dataclass(frozen=True)
class P1Key:
    """Keys of one meter, 16 bytes each."""

    encryption: bytes = field(repr=False)
    authentication: bytes = field(default=PUBLIC_AUTHENTICATION, repr=False)


def read_key(path: str) -> P1Key:
    """Read lines `encryption: <32 hex digits>` and, where the meter has one of its own, `authentication: ...`.

    `#` starts a comment. Raises `Refused` as `read_owned`, or for other content (which is not repeated).
    """
    found: dict[str, bytes] = {}
    for number, line in enumerate(read_owned(path, 'key_file').decode('ascii', 'replace').splitlines(), 1):
        name, colon, digits = line.partition('#')[0].strip().partition(':')
        if not name and not colon:
            continue
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b''
        if name.strip() not in ('encryption', 'authentication') or len(key) != 16:
            raise Refused(f'key_file {path}, line {number}: expected "encryption:" or "authentication:" and 32 hex '
                          'digits')
        found[name.strip()] = key
    if 'encryption' not in found:
        raise Refused(f'key_file {path} has no line "encryption:"')
    return P1Key(**found)


def decrypt(frame: bytes, key: P1Key) -> bytes:
    """The telegram in a whole frame. Raises `BadFrame`, `BadChecksum` (wrong key, or damaged)."""
    size = _size(frame)
    if size is None or size[1] != len(frame):
        raise BadFrame(f'{len(frame)} bytes are no frame of an encrypted telegram')
    title, content = frame[2:2 + TITLE], frame[size[0]:]
    control, counter = content[0], content[1:1 + COUNTER]
    if control != AUTHENTICATED_AND_ENCRYPTED:
        raise BadFrame(f'security control 0x{control:02x}, known 0x{AUTHENTICATED_AND_ENCRYPTED:02x}')
    secret, tag = content[1 + COUNTER:-GCM_TAG], content[-GCM_TAG:]
    opened = Cipher(algorithms.AES(key.encryption), modes.GCM(title + counter, tag, GCM_TAG)).decryptor()
    opened.authenticate_additional_data(bytes((control,)) + key.authentication)
    try:
        return opened.update(secret) + opened.finalize()
    except InvalidTag:
        raise BadChecksum('a telegram cannot be decrypted: damaged, or the key is not that of this meter') from None


def _size(data: bytes) -> tuple[int, int] | None:
    """(where the content begins, length of the frame); None while that is not known. Raises `BadFrame`."""
    if len(data) < 2 + TITLE + 1:
        return None
    if data[0] != TAG or data[1] != TITLE:
        raise BadFrame('no frame of an encrypted telegram')
    at, first = 2 + TITLE, data[2 + TITLE]
    wide = first & 0x7F if first & 0x80 else 0
    if wide > 2:
        raise BadFrame('a length of an encrypted telegram that cannot be')
    if len(data) < at + 1 + wide:
        return None
    length = int.from_bytes(data[at + 1:at + 1 + wide], 'big') if wide else first
    if not 1 + COUNTER + GCM_TAG < length <= LONGEST:
        raise BadFrame(f'an encrypted telegram of {length} bytes')
    return at + 1 + wide, at + 1 + wide + length


class CipherFramer:
    """As `p1_telegram.Framer`, for encrypted telegrams: what is damaged raises and is dropped, the next is found."""

    def __init__(self, key: P1Key) -> None:
        self._key, self._data = key, b''

    def clear(self) -> None:
        """Forget what was received."""
        self._data = b''

    def feed(self, data: bytes) -> bytes | None:
        """The newest whole telegram, decrypted; None while there is none. Raises `BadChecksum`, `BadFrame`."""
        self._data += data
        found: bytes | None = None
        problem: DeviceError | None = None
        while (start := self._data.find(bytes((TAG, TITLE)))) >= 0:
            self._data = self._data[start:]
            try:
                size = _size(self._data)
                if size is None or len(self._data) < size[1]:
                    break
                found, problem = check(decrypt(self._data[:size[1]], self._key)), None
                self._data = self._data[size[1]:]
            except DeviceError as error:
                problem, self._data = error, self._data[2:]  # its length may be wrong: look for the next beginning
        else:
            self._data = self._data[-1:] if self._data[-1:] == bytes((TAG,)) else b''
        if problem is not None and found is None:
            raise problem
        return found
