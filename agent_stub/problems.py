"""The stub's own troubles: logged to `agent_stub`, each kind at most once a minute, never raised."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("agent_stub")

REPEAT_S = 60.0
KINDS = 1000  # remembered; the names in them come from the agent


class Problems:
    """Says a thing once, then is silent about it for a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def warn(self, kind: str, message: str, *args: object, exception: BaseException | None = None) -> None:
        """Logs `message % args` unless `kind` was logged less than a minute ago."""
        now_s = self._clock()
        said_s = self._said_at.get(kind)
        if said_s is not None and now_s - said_s < REPEAT_S:
            return
        if len(self._said_at) >= KINDS:
            self._said_at.clear()
        self._said_at[kind] = now_s
        try:
            logger.warning(message, *args, exc_info=exception)
        except Exception:  # noqa: BLE001  the agent's handlers may raise, and nothing is left to tell it to
            return
