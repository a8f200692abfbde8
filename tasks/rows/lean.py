"""Import a library without the packages that it imports for others of its users."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A placeholder for a module, which is imported on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:  # used while it still stands in for the module
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def importing_less(absent: Sequence[str] = (), deferred: Sequence[str] = ()) -> Iterator[None]:
    """Inside this block, `absent` packages cannot be imported, as if not installed; `deferred` ones wait for first use.

    Packages that are already imported are not touched, and afterwards all can be imported as usual.
    """
    stand_ins = dict.fromkeys(absent) | {name: _Deferred(name) for name in deferred}
    added = {name: one for name, one in stand_ins.items() if name not in sys.modules}
    sys.modules.update(added)  # type: ignore[arg-type]  # None: ModuleNotFoundError, as importlib documents
    try:
        yield
    finally:
        for name, one in added.items():
            if name in sys.modules and sys.modules[name] is one:
                del sys.modules[name]
