"""Who is in the demo's fleet: what each agent does, and what kind of trouble it has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Trouble(StrEnum):
    """What goes wrong, or unusually, with an agent: each really happens in its process."""

    NONE = "none"
    BLOCKS = "blocks"  # waits for a silent peer inside its event loop
    BUSY = "busy"  # declares a long step and makes no progress meanwhile
    CRASHES = "crashes"  # an exception that nobody catches
    LEAVES = "leaves"  # stops on purpose and returns
    OUTAGE = "outage"  # the server it depends on goes down and comes up


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of agent. `tasks` are names of `agent.TASKS`, drawn with equal chance."""

    name: str
    tasks: tuple[str, ...]
    shows: str  # for people: what to look at
    trouble: Trouble = Trouble.NONE
    arrivals_per_s: float = 0.8
    first_trouble_s: float = 20.0
    trouble_every_s: float = 60.0
    back_after_s: float = 10.0  # the pause before the supervisor starts it again


ROLES = (
    Role("research", ("search", "summarise"), "searches text, asks the stand-in model, fills its context window"),
    Role("indexer", ("parse", "index", "pack"), "meets damaged files: honest SyntaxErrors", arrivals_per_s=4.0),
    Role("coder", ("refactor", "parse"), "slow: long completions, retries, roll-backs", arrivals_per_s=0.12),
    Role(
        "analyst",
        ("table",),
        "blocks its event loop for 12 s now and then: stuck, then live again",
        Trouble.BLOCKS,
        arrivals_per_s=3.0,
        first_trouble_s=15.0,
        trouble_every_s=50.0,
    ),
    Role(
        "planner",
        ("plan",),
        "crashes on a plan that needs itself, and comes back",
        Trouble.CRASHES,
        first_trouble_s=40.0,
        back_after_s=12.0,
    ),
    Role(
        "archivist",
        ("pack", "stamp"),
        "declares a long compression: busy, not stuck",
        Trouble.BUSY,
        arrivals_per_s=2.0,
        first_trouble_s=10.0,
        trouble_every_s=70.0,
    ),
    Role(
        "crawler",
        ("fetch",),
        "its mirror goes down and comes up: a failed dependency",
        Trouble.OUTAGE,
        arrivals_per_s=2.5,
        first_trouble_s=25.0,
    ),
    Role(
        "support",
        ("ticket",),
        "reads broken tickets; its shift ends, and it returns",
        Trouble.LEAVES,
        first_trouble_s=55.0,
        back_after_s=15.0,
    ),
)


def role_of(number: int) -> Role:
    """The role of the agent with this number, from 1: the roles in turn."""
    return ROLES[(number - 1) % len(ROLES)]


def name_of(number: int) -> str:
    return f"{role_of(number).name}-{number}"
