"""Name and instruction sets of the processor."""

import platform

from kvbench.config import cpuinfo

TEXT = (
    "processor\t: 0\nmodel name\t: Xeon 8480\nflags\t\t: fpu avx2 avx512f amx_tile\n\n"
    "processor\t: 1\nflags\t\t: fpu\n"
)


def test_read_from_the_kernel(monkeypatch):
    monkeypatch.setattr(cpuinfo, "_text", lambda: TEXT)
    assert cpuinfo.processor() == "Xeon 8480"
    assert cpuinfo.features() == {"fpu", "avx2", "avx512f", "amx_tile"}


def test_without_proc_cpuinfo(monkeypatch):
    monkeypatch.setattr(cpuinfo, "_text", lambda: "")
    assert cpuinfo.processor() == (platform.processor() or platform.machine())
    assert cpuinfo.features() == set()
