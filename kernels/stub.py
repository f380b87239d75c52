"""A GPU that is not there: Triton compiles for it what a launch would, and runs nothing."""

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
    """What one multiprocessor holds.

    Source: CUDA C++ programming guide, technical specifications per compute capability.
    """

    arch: int
    shared_per_block: int
    shared: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """Blocks of a kernel on one multiprocessor; registers are given out in units of 256 per warp."""
        by_registers = self.registers // (-(-registers * 32 // 256) * 256) // warps
        # the system takes 1 KiB of shared memory per block
        by_shared = self.shared // (-(-(shared + 1024) // 128) * 128)
        return min(by_registers, by_shared, self.warps // warps, self.blocks)


CHIPS = {
    "sm_80": Chip(80, 163 << 10, 164 << 10),
    "sm_90": Chip(90, 227 << 10, 228 << 10),
    "sm_100": Chip(100, 227 << 10, 228 << 10),
}

# every stub needs a device number of its own: a kernel keeps what it compiled per device
_devices = itertools.count(1000)


class _Utils:
    def __init__(self, chip: Chip) -> None:
        self.chip = chip

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.chip.shared_per_block, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: Any) -> None:
        """Nothing was loaded."""


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
        """There is one."""

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self):
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self):
        raise NotImplementedError

    def clear_cache(self, cache: Any) -> None:
        """Nothing is cached."""


@contextlib.contextmanager
def compiling_for(chip: Chip) -> Iterator[list]:
    """Inside, a launch with CPU tensors compiles for the chip and does nothing; gives the list of compiled kernels.

    Not in a process that has `TRITON_INTERPRET=1`.

    Raises:
        triton.OutOfResources: at a launch whose shared memory the chip does not have.
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
    # the limit of shared memory is remembered for the first device
    compiler.max_shared_mem.cache_clear()
    try:
        with mock.patch.object(compiler.CompiledKernel, "_init_handles", init_handles):
            yield compiled
    finally:
        for kernel in compiled:
            kernel.module = None  # its destructor must not call the driver
        driver._active = before
        compiler.max_shared_mem.cache_clear()


def resources(kernel: Any, chip: Chip) -> dict[str, Any]:
    """Registers, spills, shared bytes, resident blocks, occupancy and the instruction mix of a compiled kernel.

    `spills` counts instructions that move registers to and from local memory.
    """
    metadata = kernel.metadata
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = _output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, usage
    registers = int(found[1])
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly, re.M)

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, operation)) for operation in operations)

    blocks = chip.resident(registers, metadata.shared, metadata.num_warps)
    return {
        "registers": registers,
        "spills": count(r"LDL|STL"),
        "shared_bytes": metadata.shared,
        "blocks_per_sm": blocks,
        "occupancy": round(blocks * metadata.num_warps / chip.warps, 4),
        "instructions": len(operations),
        "mma": count(r"HMMA|HGMMA|UTCHMMA"),
        "loads": count(r"LDG"),
        "loads_16_bytes": count(r"LDG\S*\.128|LDGSTS\S*\.128"),
        "stores": count(r"STG"),
        "exponentials": count(r"MUFU\.EX2"),
        "barriers": count(r"BAR"),
    }


def _output(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
