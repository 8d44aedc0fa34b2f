"""Where an agent would call a model: a text generator of a few lines, and honest about it in every name it reports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

PROVIDER = "stand-in"


@dataclass(frozen=True, slots=True)
class Completion:
    """What one call gave. Tokens are words here; `cache_read_tokens` is the part of the input seen before."""

    text: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    seconds: float  # how long a model of this speed would have taken


@dataclass(slots=True)
class Markov:
    """A second-order Markov chain over words, with the pace of a model: so many tokens a second after a first wait.

    The conversation is kept as a count of tokens, as a context window is; `compact` empties it but for a summary.
    """

    words: Sequence[str]
    rng: random.Random
    name: str = "stand-in-markov"
    tokens_per_s: float = 90.0
    first_token_s: float = 0.15
    window: int = 8_192
    used: int = 0
    _next: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _pairs: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.words) < 3:
            raise ValueError(f"words: got {len(self.words)}, expected at least 3 to learn from")
        for first, second, third in zip(self.words, self.words[1:], self.words[2:], strict=False):
            self._next.setdefault((first, second), []).append(third)
        self._pairs = list(self._next)

    def complete(self, prompt: str, max_tokens: int) -> Completion:
        """Continues the prompt by up to `max_tokens` words; the window must have room: see `is_full`."""
        asked = len(prompt.split())
        cached = self.used
        out = list(self.rng.choice(self._pairs))
        while len(out) < max_tokens:
            following = self._next.get((out[-2], out[-1])) or self.rng.choice(self._pairs)  # a dead end: start anew
            out.append(self.rng.choice(following))
        out = out[:max_tokens]
        self.used = min(self.window, self.used + asked + len(out))
        seconds = (self.first_token_s + len(out) / self.tokens_per_s) * self.rng.lognormvariate(0.0, 0.25)
        return Completion(" ".join(out), cached + asked, len(out), cached, seconds)

    @property
    def is_full(self) -> bool:
        """Whether less than a fifth of the window is left."""
        return self.used > self.window * 0.8

    def compact(self) -> int:
        """Keeps a tenth of the window; returns the tokens let go."""
        before, self.used = self.used, self.window // 10
        return before - self.used
