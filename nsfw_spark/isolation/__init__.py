"""Decoding that outlives the images that end a decoder: two decoders, each with the call of `decode`.

`GuardedDecoder` is `decode` in this process, under a limit on memory and a deadline at which the kernel ends
the process: it costs seven microseconds an image, and is for processes that somebody starts again.
`IsolatedDecoder` has a process of its own for it::

    scorer ─ content ─► IsolatedDecoder ── socket ──► child: GuardedDecoder ─► decode
           ◄─ pixels, or ImageError ──────────────────┘
              `crashed` where the child ended; the next image gets another

`guarded` and `isolated` are these two; `messages` is what passes between parent and child, and
`python -m nsfw_spark.isolation` the child, which imports neither Spark nor a model library.

Knows nothing of Spark: when a task takes which, `nsfw_spark.spark.worker` says.
"""

from __future__ import annotations

from nsfw_spark.isolation.child import IsolatedDecoder
from nsfw_spark.isolation.guarded import DECODE_TIMEOUT_SECONDS, GuardedDecoder

__all__ = ["DECODE_TIMEOUT_SECONDS", "GuardedDecoder", "IsolatedDecoder"]
