"""Hybrid CNN-transformer image networks found by BossNAS, and the search that finds them.

Importing this package registers its models with timm, and does nothing else. The registration waits for timm itself
to be imported, so that `import bossnet_zoo` (and with it `bossnet --help`) costs nothing until a network is wanted.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"


class _RegisterAfterTimm(importlib.abc.MetaPathFinder):
    """Finds `timm` as usual, and imports `bossnet_zoo.models` as soon as timm has been executed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)  # for as long as timm is looked for
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                with contextlib.suppress(ValueError):  # gone already, if timm is executed once more
                    sys.meta_path.remove(self)
                importlib.import_module("bossnet_zoo.models")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("bossnet_zoo.models")
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
