"""A decoder in a process of its own: whatever an image does to that, it costs one row.

Blame is just. An image is `crashed` where it took too long, or ended a child that had decoded nothing before.
A child that had decoded others may have been damaged by these, or killed by somebody: the image gets a second
chance, in a new one.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from nsfw_spark.decode import DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation.guarded import DECODE_TIMEOUT_SECONDS
from nsfw_spark.isolation.process import ChildDiedError, ChildProcess
from nsfw_spark.model_card import Preprocessing


class IsolatedDecoder:
    """`decode` in a child process: a context manager, with the same call.

    Without `with` the child starts with the first image, and ends with the decoder or its process.
    """

    def __init__(self, timeout_seconds: float = DECODE_TIMEOUT_SECONDS) -> None:
        """Prepare; nothing is started yet.

        Args:
            timeout_seconds: An image that takes longer is `crashed`.
        """
        self._timeout_seconds = timeout_seconds
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        """Start the child.

        Raises:
            OSError: No child process can be started here.
        """
        self._running_child()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.end()

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`.

        Raises:
            ImageError: As from `decode`; `too_large` also where it wants too much memory; `crashed`.
            OSError: No child process can be started here.
        """
        if not content:
            return decode(content, preprocessing, **options)  # which says why not
        try:
            return self._decode(content, preprocessing, options)
        except ChildDiedError as death:
            if death.is_certain:
                raise ImageError("crashed", str(death)) from None
        try:
            return self._decode(content, preprocessing, options)
        except ChildDiedError as death:
            raise ImageError("crashed", str(death)) from None

    def _decode(self, content: bytes, preprocessing: Preprocessing, options: DecodeOptions) -> DecodedImage:
        return self._running_child().decode(content, preprocessing, options)

    def _running_child(self) -> ChildProcess:
        if self._child is None or not self._child.is_usable:
            self._child = ChildProcess(self._timeout_seconds)
        return self._child
