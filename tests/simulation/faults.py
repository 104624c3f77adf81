"""What goes wrong during a run, and when: drawn from the seed, counted when it happens."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from aiokafka.errors import BrokerResponseError, TopicAuthorizationFailedError, UnknownError

from anomalyd.crashpoints import NAMES
from tests.simulation.clock import KilledError, Process
from tests.simulation.network import NO_TROUBLE, Trouble

DECISIVE: Final = ("EndTxn", "Produce", "AddPartitionsToTxn", "InitProducerId")
WRITES: Final = ("EndTxn", "EndTxn", "Produce", "AddPartitionsToTxn", "InitProducerId", "OffsetCommit")
ANY: Final = (*WRITES, "Fetch", "Heartbeat", "JoinGroup", "SyncGroup", "Offset", "OffsetFetch", "FindCoordinator", "Metadata")

REPEATABLE: Final = ("Produce", "Produce", "InitProducerId", "OffsetCommit", "Heartbeat", "JoinGroup", "SyncGroup")
"""A connection delivers nothing twice; only the client repeats, and then it knows. That it does not know is safe for these. A second EndTxn
that nobody knows of would decide a later transaction, whatever is done about it."""

LONGEST_DELAY_S: Final = 30.0

CLASSES: Final = (
    "kill",  # SIGKILL at any moment
    "kill-before",  # when a request that writes is about to be executed, which then is not
    "kill-after",  # when it was executed, and nobody knows
    "crash-point",  # at one of the places that have a name
    "zombie",  # SIGSTOP for longer than the session, then SIGCONT
    "pause",  # SIGSTOP for less
    "isolation",  # one instance reaches no broker for a while
    "join",  # another instance
    "leave",  # an instance stops in order
    "rebalance-in-restore",  # another instance while one reads a changelog
    "broker-restart",
    "leader-move",
    "coordinator-move",
    "request-lost",
    "request-late",
    "request-twice",
    "answer-lost",
    "answer-late",
    "late-end",  # the request that ends a transaction, up to 30 s late
    "produce-error",  # one that the client does not repeat
    "transaction-timeout",  # brokers give a transaction up
    "truncation",  # input that a replay needs is gone
    "compaction",
    "compaction-in-restore",
    "tail-marker",  # the last control records of a changelog are gone
    "clock-jump",
    "swap",  # an instance is told of another model, or of one of before, and so are those that start later
    "missing-model",  # an instance does not find a model that scored, and somebody restarts it
    "reload",  # an instance takes up another alert policy, and so do those that start later; the others keep theirs
)
"""Every class of fault."""


@dataclass(slots=True)
class Armed:
    """A fault that waits for its request or its place."""

    kind: str
    request: str
    trouble: Trouble = NO_TROUBLE
    process: Process | None = None
    """Whose; None: the first that comes."""


class Faults:
    """Those that wait, and those that happened.

    Args:
        rng: for everything.
        now: the time.
        tell: told about each that happens.
        killed: told about every process that dies by one.
    """

    def __init__(self, rng: Random, now: Callable[[], float], tell: Callable[[str], None], killed: Callable[[Process], None]) -> None:
        self._rng = rng
        self._now = now
        self._tell = tell
        self._killed = killed
        self.hits: Counter[str] = Counter()
        self.over_s = 0.0
        """When the last one is over."""
        self.armed: list[Armed] = []
        self.points: dict[str, int] = {}
        """Crash points that are armed, with how many times they are passed before."""
        self.on_restore: list[Callable[[], None]] = []
        """What happens when a changelog is read next."""

    def hit(self, kind: str, detail: str = "", lasts_s: float = 0.0) -> None:
        """One has happened."""
        self.hits[kind] += 1
        self.over_s = max(self.over_s, self._now() + lasts_s)
        self._tell(f"FAULT {kind} {detail}")

    def disarm(self) -> None:
        """From here on nothing new goes wrong."""
        self.armed.clear()
        self.points.clear()
        self.on_restore.clear()

    # --- requests ---------------------------------------------------------------------------------------------------

    def arm_request(self, kind: str) -> None:
        """The next request of some sort will have trouble."""
        rng = self._rng
        if kind in {"kill-before", "kill-after"}:
            self.armed.append(Armed(kind, rng.choice(DECISIVE)))
        elif kind == "late-end":
            self.armed.append(Armed(kind, "EndTxn", Trouble(before_s=rng.choice([0.5, 3.0, 13.0, LONGEST_DELAY_S]))))
        elif kind == "produce-error":
            error: type[BrokerResponseError] = TopicAuthorizationFailedError if rng.random() < 0.15 else UnknownError
            self.armed.append(Armed(kind, "Produce", Trouble(error=error, part=rng.random())))
        else:
            request = rng.choice(REPEATABLE if kind == "request-twice" else WRITES if rng.random() < 0.7 else ANY)
            delay_s = rng.choice([0.2, 2.0, 11.0, LONGEST_DELAY_S])
            trouble = {
                "request-lost": Trouble(lost=True),
                "request-late": Trouble(before_s=delay_s),
                "request-twice": Trouble(twice=True),
                "answer-lost": Trouble(answer_lost=True),
                "answer-late": Trouble(after_s=delay_s),
            }[kind]
            self.armed.append(Armed(kind, request, trouble))

    def trouble(self, process: Process | None, name: str, request: Any) -> Trouble:
        """What becomes of a request."""
        if process is None:
            return NO_TROUBLE
        if name == "Fetch" and self.on_restore and any("-state-" in topic for topic, _ in request.topics):
            for happen in self.on_restore:
                happen()
            self.on_restore.clear()
        for armed in self.armed:
            if armed.request == name and armed.kind != "kill-after":
                self.armed.remove(armed)
                trouble = armed.trouble
                if armed.kind == "kill-before":
                    self.kill(process, armed.kind, name)
                    raise KilledError
                lasts_s = trouble.before_s + trouble.after_s + (3.0 if trouble.twice else 0.0)
                self.hit(armed.kind, f"{process.name} {name} {trouble.before_s or trouble.after_s or ''}", lasts_s)
                return trouble
        return NO_TROUBLE

    def executed(self, process: Process | None, name: str, request: Any) -> None:
        """A request was executed."""
        if process is None or not process.running:
            return
        for armed in self.armed:
            if armed.request == name and armed.kind == "kill-after":
                self.armed.remove(armed)
                self.kill(process, armed.kind, name)
                return

    # --- places -----------------------------------------------------------------------------------------------------

    def arm_point(self) -> None:
        """A crash point will be one."""
        self.points[self._rng.choice(NAMES)] = self._rng.choice([0, 0, 1, 4])

    def reached(self, name: str) -> None:
        """In the place of `anomalyd.crashpoints.reached`."""
        process = Process.current.get()
        if process is None or name not in self.points:
            return
        self.points[name] -= 1
        if self.points[name] < 0:
            del self.points[name]
            self.kill(process, "crash-point", name)
            raise KilledError

    def kill(self, process: Process, kind: str, detail: str) -> None:
        """Ends a process."""
        self.hit(kind, f"{process.name} {detail}")
        process.kill()
        self._killed(process)
