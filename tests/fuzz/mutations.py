"""Mutations of a file, by damage or malice, as a strategy of Hypothesis."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

Mutation = Callable[[bytearray], None]

_INTERESTING = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\xff\xff",
    b"\x00\x00\x00\x00",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\xff" * 12,
    b"\x80" * 16,
    b"\n",
    b"0x" + b"f" * 40,
]
"""Numbers that are wrong as lengths, counts or offsets."""


def _place(content: bytearray, where: int) -> int:
    return where % (len(content) + 1)


def overwrite(where: int, what: bytes) -> Mutation:
    """Overwrite bytes."""

    def mutate(content: bytearray) -> None:
        at = _place(content, where)
        content[at : at + len(what)] = what

    return mutate


def insert(where: int, what: bytes) -> Mutation:
    """Insert bytes."""

    def mutate(content: bytearray) -> None:
        at = _place(content, where)
        content[at:at] = what

    return mutate


def delete(where: int, length: int) -> Mutation:
    """Delete bytes."""

    def mutate(content: bytearray) -> None:
        at = _place(content, where)
        del content[at : at + length]

    return mutate


def repeat(where: int, length: int, times: int) -> Mutation:
    """Repeat bytes several times."""

    def mutate(content: bytearray) -> None:
        at = _place(content, where)
        content[at:at] = content[at : at + length] * times

    return mutate


def cut(where: int, _: int) -> Mutation:
    """Cut the end off."""
    return lambda content: content.__delitem__(slice(_place(content, where), None))


def flip(where: int, bit: int) -> Mutation:
    """Flip one bit."""

    def mutate(content: bytearray) -> None:
        if content:
            content[where % len(content)] ^= 1 << bit % 8

    return mutate


_where = st.integers(0, 300) | st.integers(0, 1 << 20)  # in the header, which decides most, or anywhere
_what = st.sampled_from(_INTERESTING) | st.binary(min_size=1, max_size=8)
_length = st.integers(1, 64)
MUTATIONS = st.lists(
    st.builds(overwrite, _where, _what)
    | st.builds(insert, _where, _what)
    | st.builds(delete, _where, _length)
    | st.builds(repeat, _where, _length, st.integers(1, 50))
    | st.builds(cut, _where, _length)
    | st.builds(flip, _where, _length),
    min_size=1,
    max_size=6,
)


def mutated(seed: bytes) -> st.SearchStrategy[bytes]:
    """Return mutations of a file."""

    def apply(mutations: list[Mutation]) -> bytes:
        content = bytearray(seed)
        for mutate in mutations:
            mutate(content)
        return bytes(content)

    return MUTATIONS.map(apply)
