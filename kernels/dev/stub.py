"""A stand-in for a GPU: launches compile for it and run nothing."""

import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


@dataclass(frozen=True)
class Chip:
    """Resources of one multiprocessor (AMD: compute unit).

    Sources: CUDA C++ programming guide, technical specifications per compute capability, where the system takes
    1 KiB of shared memory per block; AMD Instinct MI300 instruction set architecture, and ROCm's hardware
    specifications: four SIMDs of 512 registers for each of 64 lanes and 8 wavefronts, 64 KiB of LDS.
    """

    target: GPUTarget
    shared_per_block: int
    shared: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    register_unit: int = 256
    taken_per_block: int = 1024

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """Blocks of a kernel on one multiprocessor; registers are allocated in units per warp."""
        unit = self.register_unit
        by_registers = self.registers // (-(-registers * self.target.warp_size // unit) * unit) // warps
        by_shared = self.shared // max(128, -(-(shared + self.taken_per_block) // 128) * 128)
        return min(by_registers, by_shared, self.warps // warps, self.blocks)


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), 227 << 10, 228 << 10),
    "gfx942": Chip(
        GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, registers=4 * 512 * 64, warps=32,
        register_unit=8 * 64, taken_per_block=0,
    ),
}  # fmt: skip

# instructions counted, by column of the table
NVIDIA = {
    "spills": r"LDL|STL",
    "mma": r"HMMA|HGMMA|UTCHMMA",
    "loads": r"LDG",
    "loads_16_bytes": r"LDG\S*\.128|LDGSTS\S*\.128",
    "stores": r"STG",
    "exponentials": r"MUFU\.EX2",
    "barriers": r"BAR",
}
AMD = {
    "mma": r"v_s?mfma",
    "loads": r"(buffer|global)_load",
    "loads_16_bytes": r"(buffer|global)_load_dwordx4",
    "stores": r"(buffer|global)_store",
    "exponentials": r"v_exp_f32",
    "barriers": r"s_barrier",
}

# every stub has its own device number: a kernel caches its binaries per device
_devices = itertools.count(1000)


class _Utils:
    def __init__(self, chip: Chip) -> None:
        self.chip = chip

    def get_device_properties(self, device: int) -> dict[str, int]:
        warp = self.chip.target.warp_size
        return {"max_shared_mem": self.chip.shared_per_block, "multiprocessor_count": 132, "warpSize": warp}

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: Any) -> None:
        """No-op: nothing is loaded."""


class _Driver(DriverBase):
    def __init__(self, chip: Chip) -> None:
        self.chip, self.utils, self.device = chip, _Utils(chip), next(_devices)

    @staticmethod
    def is_active() -> bool:
        return True

    def launcher_cls(self, source: Any, metadata: Any):
        return lambda *args: None

    def get_current_device(self) -> int:
        return self.device

    def set_current_device(self, device: int) -> None:
        """No-op: there is one device."""

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.chip.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self):
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self):
        raise NotImplementedError

    def clear_cache(self, cache: Any) -> None:
        """No-op: nothing is cached."""


@contextlib.contextmanager
def compiling_for(chip: Chip) -> Iterator[list]:
    """Launches inside the context, with CPU tensors, only compile for the chip; yields the list of compiled kernels.

    Does not work under `TRITON_INTERPRET=1`.

    Raises:
        triton.OutOfResources: a launch needs more shared memory than the chip has.
    """
    from triton.compiler import compiler
    from triton.runtime.driver import driver

    compiled: list = []
    stock = compiler.CompiledKernel._init_handles

    def init_handles(self) -> None:
        if self.module is None:
            compiled.append(self)
        stock(self)

    before = driver._active
    driver.set_active(_Driver(chip))
    # the limit of shared memory is cached for the first device
    compiler.max_shared_mem.cache_clear()
    hip = "stub" if chip.target.backend == "hip" else None
    try:
        with (
            mock.patch.object(compiler.CompiledKernel, "_init_handles", init_handles),
            mock.patch.object(torch.version, "hip", hip),
        ):
            yield compiled
    finally:
        for kernel in compiled:
            kernel.module = None  # its destructor must not call the driver
        driver._active = before
        compiler.max_shared_mem.cache_clear()


def resources(kernel: Any, chip: Chip) -> dict[str, Any]:
    """Registers, spills, shared bytes, resident blocks, occupancy and the instruction mix of a compiled kernel.

    `spills` counts instructions that move registers to and from local memory; on AMD, registers kept there.
    """
    metadata = kernel.metadata
    read = _amd if chip.target.backend == "hip" else _nvidia
    registers, spills, operations, patterns = read(kernel)
    blocks = chip.resident(registers, metadata.shared, metadata.num_warps)
    counts = {
        name: sum(bool(re.match(pattern, operation)) for operation in operations)
        for name, pattern in patterns.items()
    }
    return {
        "registers": registers,
        "spills": counts.pop("spills", spills),
        "shared_bytes": metadata.shared,
        "blocks_per_sm": blocks,
        "occupancy": round(blocks * metadata.num_warps / chip.warps, 4),
        "instructions": len(operations),
        **counts,
    }


def _nvidia(kernel: Any) -> tuple[int, int, list[str], dict[str, str]]:
    """Registers of a thread, spilled ones if the compiler counts them, instructions, and patterns to count."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = _output(tools / "nvdisasm", "-c", file.name)
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly, re.M)
    return _number(r"REG:(\d+)", usage), 0, operations, NVIDIA


def _amd(kernel: Any) -> tuple[int, int, list[str], dict[str, str]]:
    """As `_nvidia`, from the compiler's assembly and its comments; scalars spill to lanes of registers only."""
    assembly = kernel.asm["amdgcn"]
    spills = _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    operations = re.findall(r"^\t([a-z]\w+)", assembly, re.M)
    return _number(r"\.vgpr_count:\s+(\d+)", assembly), spills, operations, AMD


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def _output(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
