"""How the current task decodes: guarded at first, and in a child process once an attempt has failed.

An image that ends the decoder ends the Python worker of the first attempt; Spark starts the task again, and
there it costs a child process and becomes a row. So only tasks that failed pay for isolation, and none fails
twice for its images, however many of them are poison.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyspark import TaskContext

from nsfw_spark.decode import decode
from nsfw_spark.isolation import GuardedDecoder, IsolatedDecoder
from nsfw_spark.scorer import Decoder

_log = logging.getLogger(__name__)


@contextmanager
def task_decoder(timeout_seconds: float, *, isolated: bool) -> Iterator[Decoder]:
    """Yield the decoder for the current task; outside of Spark, whose process is not ours to end, `decode`.

    Args:
        timeout_seconds: For each image.
        isolated: Decode in a child process at the first attempt too.
    """
    context = TaskContext.get()
    if context is None:
        yield decode
        return
    with ExitStack() as stack:
        if isolated or context.attemptNumber() > 0:
            try:
                decoder = stack.enter_context(IsolatedDecoder(timeout_seconds))
            except OSError as error:
                _log.warning(
                    "no child process can be started here (%s): images are decoded in the Python worker, and "
                    "one that ends it fails its task",
                    error,
                )
            else:
                yield decoder
                return
        yield stack.enter_context(GuardedDecoder(timeout_seconds))
