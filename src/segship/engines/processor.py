"""What this machine's processor is and which arithmetic it has instructions for.

Names of instruction sets are those of the Linux kernel's ``/proc/cpuinfo``, written the way people say them.
Where the system does not tell (Windows, macOS) the list is empty and callers say "unknown", never "absent".
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# kernel flag -> how it is written for people; in the order they are shown
_FLAGS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "amx_fp16": "AMX-FP16",
    "asimddp": "NEON-DOTPROD",
    "asimdhp": "NEON-FP16",
    "i8mm": "NEON-I8MM",
    "bf16": "NEON-BF16",
}
_NATIVE = {
    "int8": {"AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "NEON-DOTPROD", "NEON-I8MM"},
    "bf16": {"AVX512-BF16", "AMX-BF16", "NEON-BF16"},
    "fp16": {"AVX512-FP16", "AMX-FP16", "NEON-FP16"},
}


@dataclass(frozen=True, kw_only=True)
class Processor:
    name: str
    instruction_sets: tuple[str, ...]
    """those that matter to convolutions; empty where the system does not tell"""
    cores: int
    """logical cores that this process may use"""

    @property
    def label(self) -> str:
        """Name and the instruction sets that change an answer or a speed, for records of what executed."""
        return f"{self.name} ({', '.join(self.instruction_sets)})" if self.instruction_sets else self.name

    def computes(self, precision: str) -> bool | None:
        """Has it instructions for this precision? fp32 always; None where the system does not tell.

        Without them int8 gains little, and bf16 and fp16 gain nothing: the engines then compute in float32.
        """
        if precision == "fp32":
            return True
        if not self.instruction_sets:
            return None
        return bool(_NATIVE.get(precision, set()) & set(self.instruction_sets))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model name and instruction sets from the text of ``/proc/cpuinfo`` (x86 and Arm)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name", ""), tuple(name for flag, name in _FLAGS.items() if flag in flags)


@functools.cache
def processor() -> Processor:
    """This machine's processor. Never raises."""
    try:
        name, sets = parse_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        name, sets = "", ()
    return Processor(
        name=name or platform.processor() or platform.machine() or "unknown", instruction_sets=sets, cores=_cores()
    )
