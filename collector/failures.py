"""The failures of an analysis: caught, counted and told, so that the next call can go well."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Failures:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def caught(self, what: str) -> Iterator[None]:
        """An exception ends the block, no more."""
        try:
            yield
        except Exception as error:
            self.count += 1
            # Once, and then at every power of two: the count stays in sight without a line a second.
            if self.count & (self.count - 1) == 0:
                log.error("the analysis failed %d times, last over %s", self.count, what, exc_info=error)
