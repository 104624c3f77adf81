"""How anomalyd compiles: one decorator, so that every kernel has the same options.

- `nogil`: kernels run beside the event loop.
- `cache`: compiled code is kept on disk. Where (`NUMBA_CACHE_DIR`) and for which processor (`NUMBA_CPU_NAME`, part of the cache's key)
  is numba's own environment and comes from whoever starts Python, for instance the container image; numba reads it when it is imported.
- `error_model="numpy"`: division by zero gives inf or NaN. With Python's model each division is a branch, and loops no longer vectorise.
- `fastmath={"contract"}`: fused multiply-add only. Anything wider reorders sums or assumes that no NaN exists.
"""

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

import numba

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}


@overload
def njit(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def njit(*, forceinline: bool = ..., boundscheck: bool = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def njit(function: Callable[P, R] | None = None, /, *, forceinline: bool = False, boundscheck: bool = False) -> Any:
    """Compile `function` without the interpreter, at its first call for each set of argument types.

    Used plain (`@njit`) or with options: `forceinline` puts the machine code into each caller (`inline="always"`, numba's own inlining,
    would double compile time and is left out on purpose), `boundscheck` raises IndexError for an index outside an array (tests only: slow).
    """

    def compile_(target: Callable[P, R]) -> Callable[P, R]:
        return cast("Callable[P, R]", numba.njit(forceinline=forceinline, boundscheck=boundscheck, **_OPTIONS)(target))

    return compile_ if function is None else compile_(function)
