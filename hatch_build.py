"""Build hook: compiles the CPU kernel of deformable attention into the wheel, which is then one for this platform.

Without a C compiler the wheel is a pure one, and the kernel is compiled, or replaced by torch, where it is installed.
MOMENTDETR_PURE_WHEEL=1 asks for a pure one; MOMENTDETR_WHEEL_TAG names the platform tag, where the builder knows better
(manylinux).
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):
    """Adds the compiled library to standard wheels; editable installs compile on first use instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or os.environ.get("MOMENTDETR_PURE_WHEEL") == "1":
            return
        library = load_library(Path(self.root) / "momentdetr" / "detr" / "kernels" / "library.py")
        target = Path(self.directory) / library.name()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            library.compile_library(target)
        except RuntimeError as problem:
            self.app.display_warning(f"no compiled kernel in this wheel: {problem}")
            return
        platform = os.environ.get("MOMENTDETR_WHEEL_TAG") or sysconfig.get_platform()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform.replace('-', '_').replace('.', '_')}"
        build_data["force_include"][str(target)] = f"momentdetr/detr/kernels/{target.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        for built in Path(self.directory).glob("deformable_cpu-*"):
            built.unlink()


def load_library(path: Path) -> ModuleType:
    """The package's own module, by its path: the package's dependencies are not there while it is built."""
    spec = importlib.util.spec_from_file_location("library", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
