"""Small PDFs, object by object, also really encrypted ones."""

from __future__ import annotations

import hashlib

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_DOCUMENT_ID, _RIGHTS = bytes(16), -4


def make_pdf(objects: list[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of the objects, numbered from 1, of which the first is the catalog."""
    output, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(output))
        output += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start, size = len(output), len(objects) + 1
    output += b"xref\n0 %d\n0000000000 65535 f \n" % size
    output += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return output + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        trailer,
        start,
    )


def stream(dictionary: bytes, content: bytes) -> bytes:
    """An object with content."""
    return b"<< %s /Length %d >> stream\n%s\nendstream" % (dictionary, len(content), content)


def one_page(
    media_box: bytes,
    extra: bytes = b"",
    catalog: bytes = b"",
    more: tuple[bytes, ...] = (),
    trailer: bytes = b"",
) -> bytes:
    """A PDF of one page, which is object 3; `more` are the objects from 4 on."""
    return make_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] %s >>" % (media_box, extra),
            *more,
        ],
        trailer,
    )


def encrypted_red_page(password: str, owner_password: str = "owner") -> bytes:
    """A page of 72 x 72 points, all red, by the first kind of encryption of the standard: RC4 of 40 bits."""
    user, owner = (
        (word.encode("latin-1") + _PADDING)[: len(_PADDING)] for word in (password, owner_password)
    )
    owner_entry = _rc4(hashlib.md5(owner).digest()[:5], user)
    seed = user + owner_entry + _RIGHTS.to_bytes(4, "little", signed=True) + _DOCUMENT_ID
    key = hashlib.md5(seed).digest()[:5]
    content_key = hashlib.md5(key + (4).to_bytes(3, "little") + bytes(2)).digest()[:10]
    content = stream(b"", _rc4(content_key, b"1 0 0 rg 0 0 72 72 re f"))
    handler = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P %d >>" % (
        owner_entry.hex().encode(),
        _rc4(key, _PADDING).hex().encode(),
        _RIGHTS,
    )
    trailer = b"/Encrypt 5 0 R /ID [<%s> <%s>]" % ((_DOCUMENT_ID.hex().encode(),) * 2)
    return one_page(b"0 0 72 72", b"/Contents 4 0 R", more=(content, handler), trailer=trailer)


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    output, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        output.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(output)
