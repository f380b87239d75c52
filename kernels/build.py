"""Compiles the C++ forms with the system's compiler on first use and keeps the library in the user's cache."""

import ctypes
import errno
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvbench.config.secrets import child_environment

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
    machines can share a cache folder, and one of the library's content. Only a library of the user's own, which nobody
    else can write and whose content has that hash, is loaded. Where the cache cannot be used, each process compiles
    for itself.
    """
    cxx = compiler()
    if cxx is None:
        return None
    environment = child_environment("CXX", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX")
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, env=environment).stdout
    headers = [header.read_text() for header in sorted(Path(__file__).parent.rglob("*.h"))]
    key = "\0".join([source.read_text(), *headers, *FLAGS, version, _processor()])
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    command = [cxx, *FLAGS, str(source), "-o"]
    folder = cache_dir() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owned(folder)
        library = _cached(folder, name) or _build(command, environment, folder, name)
        return library and ctypes.CDLL(str(library))
    except OSError as error:
        why = error.strerror or error
        warnings.warn(
            f"compiled kernels cannot be kept in {folder} ({why}), and are compiled again by every process;"
            " KVBENCH_CACHE is another folder for them",
            stacklevel=2,
        )
    with tempfile.TemporaryDirectory() as scratch:
        library = _build(command, environment, Path(scratch), name)
        # what is loaded stays when its file goes
        return library and ctypes.CDLL(str(library))


def _check_owned(path: Path) -> None:
    """Refuse what somebody else owns; take from others the right to write it.

    Raises:
        PermissionError: it is somebody else's.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if found.st_mode & 0o022:
        path.chmod(found.st_mode & ~0o022)


def _cached(folder: Path, name: str) -> Path | None:
    """The library whose content has the hash in its name; others of that name are removed."""
    for path in folder.glob(f"{name}-*.so"):
        found = path.lstat()
        sound = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if sound and path.stem == f"{name}-{_hash(path)}":
            return path
        path.unlink()
    return None


def _build(command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> Path | None:
    """Compile into a folder; None where the compiler fails."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "library.so"
        done = subprocess.run([*command, str(built)], capture_output=True, text=True, env=dict(environment))
        if done.returncode != 0:
            return None
        built.chmod(0o755)
        return built.replace(folder / f"{name}-{_hash(built)}.so")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


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
