"""Build the extensions. THINKGUARD_DEBUG=1: bounds checks, asserts, -O0 and the sanitizers."""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

HEADERS = [f"csrc/{name}.h" for name in ("thinkguard", "lanes", "machine", "guard")]
DEBUG = os.environ.get("THINKGUARD_DEBUG") == "1"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/std:c11"], []
elif DEBUG:
    compile_args, link_args = ["-std=c11", "-O0", "-g", "-UNDEBUG", *SANITIZE], SANITIZE
else:
    # Hidden symbols are called directly and may be inlined; the module's init function stays visible.
    compile_args, link_args = ["-std=c11", "-O3", "-fvisibility=hidden"], []

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

setup(ext_modules=cythonize([core, slots], build_dir="build/cython", include_path=["src"], compiler_directives=directives))
