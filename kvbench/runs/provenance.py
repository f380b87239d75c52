"""What a number was measured with: versions, device, commit, peak memory."""

from __future__ import annotations

import contextlib
import functools
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench import __version__
from kvbench.config.cpuinfo import processor
from kvbench.config.secrets import child_environment
from kvbench.config.text import counted

if TYPE_CHECKING:
    import torch


@functools.cache
def versions() -> dict[str, str]:
    """Versions of kvbench, Python and the packages that can change a number."""
    found = {"kvbench": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "triton", "flash-attn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the source tree of kvbench, with `+` for a modified tree; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    environment = child_environment()
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        state = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + ("+" if state.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """Name of the device for tables, with the number of threads of a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {processor()}, {counted(torch.get_num_threads(), 'thread')}"


def reset_peak(device: torch.device) -> None:
    """Resets the peak memory measurement, where that is possible (CUDA, Linux)."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`: of the allocator on CUDA, of the process (weights included) elsewhere."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
