"""Decoding that survives images that end a decoder: two decoders with the call of `decode`.

`GuardedDecoder` runs `decode` in this process, with a limit on memory and a deadline. The kernel ends the
process at the deadline, so it is for processes that Spark starts again. It costs seven microseconds an image.
`IsolatedDecoder` uses a child process::

    scorer ─ content ─► IsolatedDecoder ── socket ──► child: GuardedDecoder ─► decode
           ◄─ pixels, or ImageError ──────────────────┘
              `crashed` if the child ended; the next image gets a new child

The parent runs `child`. The child is `python -m nsfw_spark.isolation`; it imports neither Spark nor a model
library. Both use `replies`, which defines the messages between them. `nsfw_spark.spark.worker` chooses the
decoder of a task; this package does not know Spark.
"""

from __future__ import annotations

from nsfw_spark.isolation.child import IsolatedDecoder
from nsfw_spark.isolation.guarded import DECODE_TIMEOUT_SECONDS, GuardedDecoder

__all__ = ["DECODE_TIMEOUT_SECONDS", "GuardedDecoder", "IsolatedDecoder"]
