"""What people look at: a peek into an input, and the report page of tables or of a peek.

Nothing here needs Spark. `nsfw_spark.spark.report` fills the report from tables.
"""

from __future__ import annotations
