"""The model host: one process holds the model of a GPU for all tasks of an executor.

    task ─ decode ─┐                        ┌───────────────── model host ─────────────────┐
    task ─ decode ─┼─► pixels, uint8 ───────┤ connection ─┐                                │
    task ─ decode ─┘   over a Unix socket   │ connection ─┼─► batcher ─► encoder ─► head ──┼─► predictions
                                            │ connection ─┘   batches across tasks         │   back to each
                                            └──────────────────────────────────────────────┘

On a task's side: `client` (the task's `Predictor`), on top of `lifecycle` (find the host, or start it). In
the process, `python -m nsfw_spark.host`: `process` (its beginning, its watch over the executor, its end),
`connection` (one of a task), `batcher`. Between them: `spec` (what to hold, and for whom), `home` (the
directory where they meet) and `frames` (what they say to each other).

Knows nothing of Spark: a benchmark or a test is as good an executor. A task's side imports no model library.
"""

from __future__ import annotations

from nsfw_spark.host.client import HostedModel
from nsfw_spark.host.directory import HostSpec, Owner
from nsfw_spark.host.start import HostUnavailableError

__all__ = ["HostSpec", "HostUnavailableError", "HostedModel", "Owner"]
