"""Ways in which a file may be damaged; each takes its bytes and a generator of random numbers."""

from collections.abc import Callable

import numpy as np

Random = np.random.Generator
Damage = Callable[[bytes, Random], bytes]


def cut(content: bytes, random: Random) -> bytes:
    """Cut off the end."""
    return content[: random.integers(1, max(2, len(content)))]


def flip(content: bytes, random: Random) -> bytes:
    """Flip one to eight bits anywhere."""
    changed = bytearray(content)
    for place in random.integers(0, len(changed), random.integers(1, 9)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def flip_head(content: bytes, random: Random) -> bytes:
    """Flip bits where formats keep their sizes and offsets."""
    return flip(content[:256], random) + content[256:]


def blank(content: bytes, random: Random) -> bytes:
    """Fill a block with zeros, as lost sectors are."""
    start = int(random.integers(len(content)))
    size = int(random.integers(1, 4096))
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def enlarge(content: bytes, random: Random) -> bytes:
    """Set four bytes of the head to their largest value: absurd sizes and offsets."""
    start = int(random.integers(4, max(5, min(len(content), 256) - 4)))
    return content[:start] + b"\xff\xff\xff\x7f" + content[start + 4 :]


def noise(content: bytes, random: Random) -> bytes:
    """Keep the first bytes, by which formats are recognised, before random ones."""
    return content[:8] + random.bytes(max(0, len(content) - 8))


def nothing(content: bytes, random: Random) -> bytes:
    """Keep nothing."""
    return b""


def zeros(content: bytes, random: Random) -> bytes:
    """Keep only the length."""
    return bytes(len(content))


def repeat(content: bytes, random: Random) -> bytes:
    """Repeat the content."""
    return content * 2


_WORDS = (
    b"NaN",
    b"-1",
    b"1e400",
    b"",
    b"null",
    b"\x00",
    b"\xff",
    b'"',
    b"99999999999999999999",
    b"\xe2\x80\xae",
    b"[",
)


def reword(content: bytes, random: Random) -> bytes:
    """Put something odd in place of one of a text's words or numbers."""
    words = content.split(b",")
    words[random.integers(len(words))] = _WORDS[random.integers(len(_WORDS))]
    return b",".join(words)


def drop_a_letter(content: bytes, random: Random) -> bytes:
    """Drop one byte."""
    place = int(random.integers(len(content)))
    return content[:place] + content[place + 1 :]


OF_ANY_FILE: tuple[Damage, ...] = (cut, flip, flip_head, blank, enlarge, noise, nothing, zeros, repeat)
OF_TEXTS: tuple[Damage, ...] = (*OF_ANY_FILE, reword, reword, reword, drop_a_letter)
