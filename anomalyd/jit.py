"""How anomalyd compiles: one decorator, so that every kernel has the same options and the same cache.

- `nogil`: kernels run beside the event loop.
- `error_model="numpy"`: division by zero gives inf or NaN. With Python's model each division is a branch, and loops no longer vectorise.
- `fastmath={"contract"}`: fused multiply-add only. Anything wider reorders sums or assumes that no NaN exists.
- Machine code is kept on disk between starts. Where (`NUMBA_CACHE_DIR`) and for which processor (`NUMBA_CPU_NAME`, part of the cache's
  key) is numba's own environment and comes from whoever starts Python, for instance the container image; numba reads it when imported.

Numba's own cache has three habits that do not fit a daemon, so ours differs: it refuses to start where no folder can be written (a
read-only container with a cache filled at build time); it looks at a function's own file only, so that an edited helper in another file
leaves stale machine code in its callers; and it keys a kernel that calls others through its closure by names that those have in this
process only, so that such a kernel is compiled at every start.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

import numba
import numba.core.caching
import numba.misc.appdirs

P = ParamSpec("P")
R = TypeVar("R")

# Half of numba is annotated, inconsistently: all of it counts as untyped here.
caching: Any = numba.core.caching
appdirs: Any = numba.misc.appdirs
config: Any = numba.config

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@overload
def njit(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def njit(*, forceinline: bool = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def njit(function: Callable[P, R] | None = None, /, *, forceinline: bool = False) -> Any:
    """Compile `function` to machine code at its first call for each set of argument types, or load it from the cache.

    Used plain (`@njit`) or with `forceinline`, which puts the machine code into each caller (numba's own `inline="always"` would double
    the time to compile and is left out on purpose).
    """

    def compile_(target: Callable[P, R]) -> Callable[P, R]:
        if target.__closure__:
            # Symbols of machine code are named after the function. Two kernels of one factory that come out of the cache may otherwise
            # bear the same name, and the linker takes the first for both: the constants of one shape at work on the rows of another.
            target.__qualname__ += "_" + hashlib.sha256(_constants(target).encode()).hexdigest()[:12]
        dispatcher = numba.njit(forceinline=forceinline, **_OPTIONS)(target)
        dispatcher._cache = _KernelCache(target)  # noqa: SLF001 - what numba's `cache=True` does, with our class
        return cast("Callable[P, R]", dispatcher)

    return compile_ if function is None else compile_(function)


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # noqa: SLF001 - numba is untyped; its public locators all demand a writable folder
    """The folder of one function's machine code, and the stamp that says whether it is current."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._line = function.__code__.co_firstlineno
        self._file = file
        self._folder = _folder(Path(file).parent)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return hashlib.sha256(Path(self._file).read_bytes() + _kernels_stamp()).hexdigest()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _KernelCacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]  # numba is untyped
    _locator_classes = (_Locator,)


class _KernelCache(caching.FunctionCache):  # type: ignore[misc]  # numba is untyped
    _impl_class = _KernelCacheImpl

    def _index_key(self, sig: object, codegen: Any) -> tuple[object, ...]:  # noqa: ANN401 - numba is untyped
        # Code is in the source stamp; what is left to tell apart is the constants that a factory gave the kernel.
        return (sig, codegen.magic_tuple(), _constants(self._py_func))

    def load_overload(self, sig: object, target_context: object) -> object:
        found: object = super().load_overload(sig, target_context)
        if found is None:
            _announce()
        return found

    def save_overload(self, sig: object, data: object) -> None:
        # A folder that cannot be written costs time at the next start, nothing else.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def _constants(function: Callable[..., Any]) -> str:
    """What the closure of `function`, and of the kernels in it, holds (numbers and other kernels): the same text in every process."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return repr([_described(held.py_func) if hasattr(held, "py_func") else held for held in cells])


def _described(kernel: Callable[..., Any]) -> tuple[str, str, str]:
    """Which kernel, too: a factory may be given one of several, none of which holds constants."""
    return kernel.__module__, kernel.__qualname__, _constants(kernel)


@cache
def _folder(sources: Path) -> Path:
    """Where machine code of the functions in the folder `sources` lies: the first place that can be written, else the first that exists."""
    subfolder: str = caching._CacheLocator.get_suitable_cache_subpath(str(sources / "_"))  # noqa: SLF001 - numba's naming, kept
    user_wide = Path(str(appdirs.AppDirs(appname="numba", appauthor=False).user_cache_dir)) / subfolder
    places = [sources / "__pycache__", user_wide]
    if config.CACHE_DIR:
        places.insert(0, Path(config.CACHE_DIR) / subfolder)
    existing = [place for place in places if place.is_dir()]
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
            return place
    return existing[0] if existing else places[0]


def keeps_code() -> bool:
    """Whether machine code of the detector's kernels can be written down, so that another process finds it."""
    try:
        tempfile.TemporaryFile(dir=_folder(Path(__file__).parent / "detector")).close()
    except OSError:
        return False
    return True


_listeners: Final[list[Callable[[], None]]] = []


def on_compiling(tell: Callable[[], None]) -> None:
    """Calls `tell`, once, before the first kernel from now on that is not in the cache: whoever waits may want to know why."""
    _listeners[:] = [tell]


def _announce() -> None:
    while _listeners:
        _listeners.pop()()


@cache
def _kernels_stamp() -> bytes:
    """Digest of every source file of the package that has to do with compiled code, constants that its neighbours define included."""
    root = Path(__file__).parent
    sources = {file: file.read_bytes() for file in sorted(root.rglob("*.py"))}
    kernels = {file for file, source in sources.items() if b"njit" in source or b"numba" in source}
    folders = {file.parent for file in kernels} - {root}
    digest = hashlib.sha256()
    for file, source in sources.items():
        if file in kernels or file.parent in folders:
            digest.update(source)
    return digest.digest()
