"""Holds the limits of each architecture's multiprocessors, and computes how many programs they hold at once.

The figures are those of the CUDA programming guide, appendix "Compute capabilities".
"""

from dataclasses import dataclass

REGISTERS = 65536  # 32 bits each
MOST_REGISTERS = 255  # of a thread
REGISTERS_AT_ONCE = 256  # A warp's registers are allocated in multiples of this number.
RESERVED = 1024  # bytes of a program's shared memory that the system takes


@dataclass(frozen=True)
class Device:
    """A Device holds the limits of an architecture; memory is in bytes."""

    shared: int  # bytes of a multiprocessor
    warps: int
    programs: int

    @property
    def most_shared(self) -> int:
        """Returns the shared memory that one program can have."""
        return self.shared - RESERVED

    def resident(self, warps: int, registers: int, shared: int) -> int:
        """Returns how many programs of so many warps, registers per thread and bytes a multiprocessor runs at once."""
        rounded = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        return min(
            self.programs, self.warps // warps, REGISTERS // (rounded * warps), self.shared // (shared + RESERVED)
        )


DEVICES = {
    "sm_80": Device(164 << 10, 64, 32),
    "sm_86": Device(100 << 10, 48, 16),
    "sm_89": Device(100 << 10, 48, 24),  # It is used for fp8; all else is the same on sm_86.
    "sm_90": Device(228 << 10, 64, 32),
}
