"""The model host: one process holds the model of a GPU for all tasks of an executor.

    task ─ decode ─┐                        ┌───────────────── model host ─────────────────┐
    task ─ decode ─┼─► pixels, uint8 ───────┤ connection ─┐                                │
    task ─ decode ─┘   over a Unix socket   │ connection ─┼─► batcher ─► encoder ─► head ──┼─► predictions
                                            │ connection ─┘   batches across tasks         │   back to each
                                            └──────────────────────────────────────────────┘

A task runs `client`, which is its `Predictor`, and `start`, which finds the host or starts it. The host's
process is `python -m nsfw_spark.host`: it runs `server` and one `batcher` for each model. Both sides use
`directory` (the spec of a host, and its directory) and `protocol` (the messages).

This package does not know Spark: a benchmark or a test can own a host too. A task imports no model library.
"""

from __future__ import annotations

from nsfw_spark.host.client import HostedModel
from nsfw_spark.host.directory import HostSpec, Owner
from nsfw_spark.host.start import HostUnavailableError

__all__ = ["HostSpec", "HostUnavailableError", "HostedModel", "Owner"]
