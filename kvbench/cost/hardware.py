"""Devices: memory, bandwidth, arithmetic and rental price, as data in conf/hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.config.reading import yaml_file
from kvbench.config.typed import build, unknown

GROUP = "hardware"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A rate as the vendor states it and as programs reach it.

    Attributes:
        peak: from the datasheet.
        attainable: from a measurement.
        source: keys into the file's `sources`, that of peak first, then that of attainable.
    """

    peak: float | None = None
    attainable: float
    source: str

    def of(self, peak: bool) -> float:
        """The peak rate, or the attainable one.

        Raises:
            UserError: no peak rate is known.
        """
        if peak and self.peak is None:
            raise UserError("peak: this device was measured, it has no datasheet figures; leave peak out")
        return self.peak if peak and self.peak is not None else self.attainable


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What other providers ask for the same device.

    Attributes:
        low: the lowest price per hour that was found.
        high: the highest.
        source: keys into the file's `sources`.
    """

    low: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise UserError(f"others: low {self.low} and high {self.high} are not 0 < low <= high")


@dataclass(frozen=True, kw_only=True)
class Price:
    """Rental price of one device at one provider.

    Attributes:
        usd_per_hour: on demand, without discounts.
        provider: who asks it.
        source: key into the file's `sources`.
        others: what others ask, None if not known.
    """

    usd_per_hour: float
    provider: str = "provider not named"
    source: str
    others: Offers | None = None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device.

    Attributes:
        name: its name in conf/hardware.
        title: its full name.
        memory_mib: MiB as reported by the driver.
        memory_source: key into `sources`.
        bandwidth_gb_s: GB/s (10^9) when reading memory.
        tflops: TFLOP/s (10^12) of dense bf16 products, accumulated in fp32.
        rent: price per hour, None if unknown.
        sources: what was read or run, where and when.
    """

    name: str
    title: str
    memory_mib: float
    memory_source: str
    bandwidth_gb_s: Rate
    tflops: Rate
    rent: Price | None = None
    sources: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [self.memory_source, self.bandwidth_gb_s.source, self.tflops.source]
        named += [self.rent.source] if self.rent else []
        named += [self.rent.others.source] if self.rent and self.rent.others else []
        for key in " ".join(named).split():
            if key not in self.sources:
                raise unknown("source", key, self.sources, "source")

    @property
    def memory(self) -> float:
        """Memory in bytes."""
        return self.memory_mib * MIB

    @property
    def usd_per_hour(self) -> float | None:
        """Rental price, None if unknown."""
        return self.rent.usd_per_hour if self.rent else None

    @property
    def rent_note(self) -> str:
        """Whose price the rent is, as of when, and what others ask; empty without a price."""
        if self.rent is None:
            return ""
        seen = _seen(self.sources[self.rent.source])
        note = self.rent.provider + (f", {seen}" if seen else "")
        others = self.rent.others
        if others is None:
            return f"{note}; other offers not known"
        when = " and ".join(
            dict.fromkeys(filter(None, (_seen(self.sources[k]) for k in others.source.split())))
        )
        return f"{note}; others ${others.low:.2f} to ${others.high:.2f}" + (f", {when}" if when else "")

    def bandwidth(self, peak: bool = False) -> float:
        """Bytes per second, attainable or from the datasheet."""
        return self.bandwidth_gb_s.of(peak) * 1e9

    def flops(self, peak: bool = False) -> float:
        """Floating-point operations per second, attainable or from the datasheet."""
        return self.tflops.of(peak) * 1e12


def _seen(source: Any) -> str:
    """When a source was read, or the date that it gives itself; empty if neither is stated."""
    return str(source.get("of") or source.get("seen") or "") if isinstance(source, dict) else ""


def hardware_names(config_dirs: Sequence[str] = ()) -> list[str]:
    """Names of all known devices."""
    return Groups(tuple(config_dirs)).options(GROUP)


def hardware(name: str, config_dirs: Sequence[str] = ()) -> Hardware:
    """Load a device.

    Args:
        name: a file in conf/hardware or in the user's folders, or the path of a YAML file.
        config_dirs: the user's configuration folders.

    Raises:
        UserError: an unknown name or an invalid file.
    """
    known = hardware_names(config_dirs)
    if name in known and (file := Groups(tuple(config_dirs)).file(GROUP, name)):
        data = yaml_file(file, f"{GROUP}.{name}")
    elif Path(name).is_file():
        data, name = yaml_file(Path(name), f"{GROUP}.{Path(name).stem}"), Path(name).stem
    else:
        raise unknown(GROUP, name, [*known, "a YAML file"], "device")
    if not isinstance(data, dict):
        raise UserError(f"{GROUP}.{name}: not the description of a device")
    return build(Hardware, {"name": name, **data}, f"{GROUP}.{name}")
