"""Build the extensions. THINKGUARD_DEBUG=1: bounds checks, asserts, -O0 and the sanitizers."""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit(
        f"{sys.executable} is a free-threaded CPython, on which thinkguard was never run: build it for one with a GIL"
    )
HEADERS = [f"csrc/{name}.h" for name in ("thinkguard", "lanes", "machine", "guard")]
DEBUG = os.environ.get("THINKGUARD_DEBUG") == "1"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/std:c11"], []
elif DEBUG:
    compile_args, link_args = ["-std=c11", "-O0", "-g", "-UNDEBUG", *SANITIZE], SANITIZE
else:
    # Hidden symbols are called directly and may be inlined; the module's init function stays visible.
    # Python's own flags may ask for debug symbols, which are five sixths of such a file. CFLAGS in the environment replace
    # them, and would bring back the asserts.
    compile_args, link_args = ["-std=c11", "-O3", "-g0", "-DNDEBUG", "-fvisibility=hidden"], []

core = Extension(
    "thinkguard.core._core",
    ["src/thinkguard/core/_core.pyx", "csrc/lift.c", "csrc/machine.c", "csrc/decide.c", "csrc/edit.c", "csrc/guard.c"],
    include_dirs=["csrc"],
    depends=[*HEADERS, "src/thinkguard/core/_c.pxd", "src/thinkguard/core/_core.pxd"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
# Holds no C of its own: it calls the core through the functions that _core.pxd declares, found when it is imported.
slots = Extension(
    "thinkguard.core._slots",
    ["src/thinkguard/core/_slots.pyx"],
    include_dirs=["csrc"],
    depends=[*HEADERS, "src/thinkguard/core/_c.pxd", "src/thinkguard/core/_core.pxd"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "embedsignature": True,
}



class BuildWithImages(build_ext):
    """The extensions, and the kernels compiled for GPUs beside them where NVRTC is installed."""

    def run(self) -> None:
        super().run()
        if DEBUG:  # is built again and again, and never ships
            return
        place = Path(__file__).with_name("tools") / "compile_images.py"
        spec = importlib.util.spec_from_file_location("compile_images", place)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        try:
            tool.build()
        except tool.NoCompilerError as reason:
            print(f"warning: no GPU kernels in this build: {reason}", file=sys.stderr)
        else:
            if not self.inplace:
                self.copy_tree(str(tool.OUT), str(Path(self.build_lib) / "thinkguard" / "device" / "images"))


setup(
    ext_modules=cythonize([core, slots], build_dir="build/cython", include_path=["src"], compiler_directives=directives),
    cmdclass={"build_ext": BuildWithImages},
)
