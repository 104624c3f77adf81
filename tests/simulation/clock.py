"""An event loop without waiting: when nothing is ready, the clock jumps to the next timer. One thread, nothing random, nothing real.

Instances of the daemon are processes here: tasks that share a context. A killed process never runs another step, not even its cleanup;
a stopped one (SIGSTOP) keeps what should have run until it goes on.
"""

import asyncio
import contextlib
import heapq
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final
from unittest import mock

EPOCH_S: Final = 1_767_268_800.0
"""What the wall shows when a run begins."""

_STEPS_AT_ONCE: Final = 200_000
"""So many steps without the clock moving are a loop that never waits."""


class StuckError(AssertionError):
    """Nothing will ever happen again, or one moment never ends."""


class KilledError(BaseException):
    """Unwinds what a process was in the middle of when it was killed."""


class Process:
    """Tasks that live and die together."""

    current: Final[ContextVar["Process | None"]] = ContextVar("process", default=None)

    def __init__(self, name: str, loop: "VirtualLoop") -> None:
        self.name = name
        self.loop = loop
        self.alive = True
        self.stopped = False
        self.tasks: list[asyncio.Task[Any]] = []
        """All that were ever made: a task that nobody refers to is collected, and collecting runs its `finally`."""
        self._context = copy_context()
        self._context.run(self.current.set, self)
        self._due: list[asyncio.Handle] = []

    @property
    def running(self) -> bool:
        return self.alive and not self.stopped

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work, context=self._context.copy())

    def run(self, function: Callable[[], Any]) -> Any:
        """Calls a function as if the process did."""
        return self._context.copy().run(function)

    def postpone(self, handle: asyncio.Handle) -> None:
        if self.alive:
            self._due.append(handle)

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        self._due.clear()

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped = False
        due, self._due = self._due, []
        self.loop.put_back(due)

    def bury(self) -> None:
        """After the run: closes what was left hanging. Its cleanup runs now, with nothing to clean up; what it says does not count."""
        self.alive = False
        with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
            warnings.simplefilter("ignore")
            for task in self.tasks:
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
            self.tasks.clear()


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. Executors do their work in it, one piece after the other, when the time that it takes is over.

    Args:
        work_s: how long a piece of work for an executor takes, by its name.
    """

    def __init__(self, work_s: Callable[[str], float] = lambda _: 0.0) -> None:
        super().__init__()
        self._now = 0.0
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]
        self._work_s = work_s
        self._busy_until: dict[int, float] = {}
        self._steps_now = 0
        self.steps = 0
        self.wall_offset_s = 0.0
        """By how much the wall clock was set forward."""
        self.crashes: list[dict[str, Any]] = []
        """What went wrong in callbacks."""
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # a protocol with optional keywords
        self.set_exception_handler(lambda _, context: self._note(context))

    # --- the clock --------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def wall(self) -> float:
        """What time.time() says."""
        return EPOCH_S + self.wall_offset_s + self._now

    def _monotonic_ns(self) -> int:
        return int(self._now * 1e9)

    def _wall_ns(self) -> int:
        return int(self.wall() * 1e9)

    def call_later(  # type: ignore[override]  # the arguments are the callback's business
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # A rest of a wait that is lost in rounding would be waited for again and again.
        return super().call_later(max(delay, 1e-6) if delay > 0 else delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)
        if not ready:
            if not scheduled:
                raise StuckError("nothing will ever happen again")
            if scheduled[0]._when > self._now:  # type: ignore[attr-defined]
                self._now = scheduled[0]._when  # type: ignore[attr-defined]
                self._steps_now = 0
        while scheduled and scheduled[0]._when <= self._now:  # type: ignore[attr-defined]
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer._cancelled:
                ready.append(timer)
        self._steps_now += len(ready)
        self.steps += len(ready)
        if self._steps_now > _STEPS_AT_ONCE:
            raise StuckError(f"{self._steps_now} steps at {self._now:.6f} s: something loops without waiting")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(Process.current)  # type: ignore[attr-defined]
            if process is None or process.running:
                handle._run()
            else:
                process.postpone(handle)

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    # --- what a loop must have --------------------------------------------------------------------------------------

    def _write_to_self(self) -> None:
        """There is no other thread to be woken by."""

    def _process_events(self, event_list: Any) -> None:
        raise NotImplementedError

    def run_in_executor(  # type: ignore[override]  # likewise
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done = self.create_future()
        at = max(self._now, self._busy_until.get(id(executor), 0.0)) + self._work_s(getattr(func, "__name__", ""))
        self._busy_until[id(executor)] = at

        def work() -> None:
            if done.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  as an executor does
                done.set_exception(error)
            else:
                done.set_result(result)

        self.call_at(at, work)
        return done

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        process = (context or copy_context()).get(Process.current)
        if process is not None:
            process.tasks.append(task)
        return task

    def _note(self, context: dict[str, Any]) -> None:
        # The client's own callbacks stumble over batches and futures that went when it was discarded.
        if "handle" in context and not isinstance(context.get("exception"), KilledError | asyncio.CancelledError | KeyError):
            self.crashes.append(context)

    # --- running ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def clocks(self) -> Iterator[None]:
        """While it runs, every clock of the process shows this loop's time."""
        monotonic, wall = self.time, self.wall
        with (
            mock.patch.object(time, "monotonic", monotonic),
            mock.patch.object(time, "perf_counter", monotonic),
            mock.patch.object(time, "monotonic_ns", self._monotonic_ns),
            mock.patch.object(time, "time", wall),
            mock.patch.object(time, "time_ns", self._wall_ns),
        ):
            yield
