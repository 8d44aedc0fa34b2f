"""What floods cost: frames that carry no message spend, messages and time earn.

Resets, pings, settings, priorities, window updates, empty and tiny DATA, header blocks: each is cheap to send and costs
work here. A peer starts with BURST, earns with each message either way and with time, and is ended with
ENHANCE_YOUR_CALM when it has spent all. Nothing is reckoned while something is left.
"""

from __future__ import annotations

from collections.abc import Callable

from collectord.http2.frames import Code, ConnectionFaultError

BURST = 2000
EARNED_A_SECOND = 500
RESET_COST = 5  # a stream begun for nothing (CVE-2023-44487): 100 a second
HEADER_BYTES_A_UNIT = 256  # HPACK costs by the byte


class Budget:
    """One connection's. `now_s` is a monotonic clock."""

    __slots__ = ("_now_s", "_since_s", "earned", "left")

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._since_s = now_s()
        self.left = BURST
        self.earned = 0  # since the last reckoning; whoever handles a message adds to it

    def spend(self, cost: int = 1) -> None:
        """Raises ConnectionFaultError when nothing is left."""
        self.left -= cost
        if self.left < 0:
            self._reckon()

    def _reckon(self) -> None:
        now_s = self._now_s()
        self.left += min(BURST, self.earned + int((now_s - self._since_s) * EARNED_A_SECOND))
        self._since_s, self.earned = now_s, 0
        if self.left < 0:
            reason = f"got a flood of frames without messages, expected at most {EARNED_A_SECOND} a second"
            raise ConnectionFaultError("flood", Code.ENHANCE_YOUR_CALM, reason)
