"""Sound files that are cut short, or have flipped bits."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.hostile.made import DAMAGED, SEEDS, TOO_LARGE, UNDECODABLE, UNSUPPORTED, Hostile

_SEVERAL_FRAMES = ("animated", "pages", "two")  # the first may be whole where the rest is cut off
_KEPT = (0.05, 0.3, 0.5, 0.7, 0.9, 0.97)


def truncated() -> Iterator[Hostile]:
    """Yield each seed with less and less of it left."""
    for name, content in SEEDS.items():
        for kept in _KEPT:
            forgiven = kept > 0.6 or (kept > 0.2 and name.startswith(_SEVERAL_FRAMES))
            statuses = DAMAGED if forgiven else UNDECODABLE
            if name.endswith(".heic"):
                statuses |= UNSUPPORTED  # without the extra `heic`
            yield Hostile(f"cut-{kept:.2f}-{name}", content[: int(len(content) * kept)], statuses)
        yield Hostile(f"cut-3-bytes-{name}", content[:3], UNDECODABLE)
        yield Hostile(f"cut-1-byte-off-{name}", content[:-1], DAMAGED | UNSUPPORTED)


def flipped() -> Iterator[Hostile]:
    """Yield each seed with 1, 4 and 16 flipped bits, and with a hole of zeros."""
    for name, content in SEEDS.items():
        draw = random.Random(name)  # noqa: S311 - the same damage in each run
        for num_bits in (1, 4, 16):
            damaged = bytearray(content)
            for _ in range(num_bits):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            yield Hostile(f"flip-{num_bits}-{name}", bytes(damaged), DAMAGED | UNSUPPORTED | TOO_LARGE)
        start = draw.randrange(len(content) // 2)
        holed = content[:start] + bytes(32) + content[start + 32 :]
        yield Hostile(f"hole-{name}", holed, DAMAGED | UNSUPPORTED | TOO_LARGE)
