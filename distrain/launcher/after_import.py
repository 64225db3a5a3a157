"""Something done once a module has been imported, by whoever imports it, without importing it ahead of that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["after_import"]


def after_import(module: str, name: str, then: Callable[[], None]) -> None:
    """Call something once when a module has come as far as a name of its own; at once when it has already.

    Until then a finder that finds nothing stands first in `sys.meta_path`. It looks whenever a module is searched for,
    so what a module imports last of all is noticed only at the import after it.

    Args:
        module: The module's full name.
        name: One of its names.
        then: What to do; it may not raise.
    """
    if _has(module, name):
        then()
    else:
        sys.meta_path.insert(0, _Lookout(module, name, then))


def _has(module: str, name: str) -> bool:
    return hasattr(sys.modules.get(module), name)


class _Lookout:
    """Finds nothing, and leaves once it has seen what it looks for.

    Args:
        module: As in `after_import`.
        name: As there.
        then: As there.
    """

    def __init__(self, module: str, name: str, then: Callable[[], None]) -> None:
        self._module = module
        self._name = name
        self._pending = [then]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find once this one has left their list: whoever goes through it skips one."""
        if not _has(self._module, self._name):
            return None
        try:
            then = self._pending.pop()
        except IndexError:  # another thread was here first
            return None
        sys.meta_path.remove(self)
        then()
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path)
        return next((spec for spec in found if spec is not None), None)
