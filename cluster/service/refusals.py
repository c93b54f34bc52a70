"""Reports that were refused: counted, the last one remembered for `status`, and logged without flooding the log."""

from __future__ import annotations

from typing import Final

import structlog

LOG_PERIOD_S: Final = 10.0
MAX_PROBLEM_CHARACTERS: Final = 1024

log = structlog.get_logger(__name__)


class Refusals:
    """Constant memory, whatever is sent (INV-8)."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self._logged_at_s = float("-inf")

    def note(self, problem: str, now_s: float) -> str:
        """Count one refusal, and log it unless another was logged less than LOG_PERIOD_S ago. Returns the words for the reply."""
        self.count += 1
        self.last = problem[:MAX_PROBLEM_CHARACTERS]
        if now_s - self._logged_at_s >= LOG_PERIOD_S:
            self._logged_at_s = now_s
            log.warning("report_refused", problem=self.last, refused_reports=self.count)
        return self.last
