"""The checks of `nsfw-spark doctor`: what is wrong here, and the setting or command that cures it.

`machine` looks at this computer, `settings` and `executors` judge a `Cluster`, `estimate` says how long a run
would take, `text` prints it. `facts` measures, here and in a Spark task. Nothing here imports Spark: the
settings and facts of a cluster come from `nsfw_spark.spark.doctor`.
"""

from __future__ import annotations
