"""Settings of Hypothesis: 40 examples for each seed, or the number in `FUZZ_EXAMPLES`."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

NUM_EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "40"))

EXAMPLES: Final = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
