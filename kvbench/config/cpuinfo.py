"""The processor of this machine, from /proc/cpuinfo."""

import functools
import platform
import re
from pathlib import Path


@functools.cache
def _text() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def processor() -> str:
    """Model name of the processor, for tables."""
    name = re.search(r"^model name\s*:\s*(.+)$", _text(), re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def features() -> set[str]:
    """Names of the instruction-set extensions, as `avx512f`; empty where the kernel does not list them."""
    flags = re.search(r"^flags\s*:\s*(.+)$", _text(), re.MULTILINE)
    return set(flags[1].split()) if flags else set()
