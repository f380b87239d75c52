"""Compiles the C++ forms with the system's compiler on first use and keeps the library in the user's cache."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

# -O2 with its loops unrolled runs as fast as -O3 here and compiles in half the time
FLAGS = (
    "-O2",
    "-fpeel-loops",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)

TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


def cache_dir() -> Path:
    """The user's cache folder: `$KVBENCH_CACHE`, else `$XDG_CACHE_HOME/kvbench`, else `~/.cache/kvbench`."""
    if folder := os.environ.get("KVBENCH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvbench"


def compiler() -> str | None:
    """Path of the C++ compiler, or None; `$CXX` takes precedence."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


@functools.cache
def load(source: Path) -> ctypes.CDLL | None:
    """The compiled library of a C++ file, or None if it cannot be built (no compiler, no OpenMP).

    The file name contains a hash of source, headers, flags, compiler version and processor, so that different
    machines can share a cache folder.
    """
    cxx = compiler()
    if cxx is None:
        return None
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    headers = [header.read_text() for header in sorted(Path(__file__).parent.rglob("*.h"))]
    key = "\0".join([source.read_text(), *headers, *FLAGS, version, _processor()])
    target = cache_dir() / "kernels" / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            done = subprocess.run(
                [cxx, *FLAGS, str(source), "-o", str(built)], capture_output=True, text=True
            )
            if done.returncode != 0:
                return None
            built.replace(target)
    return ctypes.CDLL(str(target))


@functools.cache
def function(source: Path, name: str, signature: str) -> Callable[..., int]:
    """A function of a C++ file that `load` has built.

    Args:
        source: the file.
        name: name of the function.
        signature: one letter per argument: p address, n int64, i int, f float.
    """
    library = load(source)
    assert library is not None
    found = library[name]
    found.argtypes = [TYPES[letter] for letter in signature]
    return found


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
