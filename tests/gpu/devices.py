"""What a multiprocessor of each architecture has, and how many programs of a kernel it holds at once.

Figures: CUDA programming guide, appendix "Compute capabilities".
"""

from dataclasses import dataclass

REGISTERS = 65536  # of 32 bits
REGISTERS_AT_ONCE = 256  # a warp's are given out in such pieces
RESERVED = 1024  # bytes of shared memory a program, for the system


@dataclass(frozen=True)
class Device:
    """Limits of an architecture; memory in bytes."""

    shared: int  # of a multiprocessor
    warps: int
    programs: int

    @property
    def most_shared(self) -> int:
        """What one program can have."""
        return self.shared - RESERVED

    def resident(self, warps: int, registers: int, shared: int) -> int:
        """How many programs of so many warps, registers a thread and bytes run on a multiprocessor at a time."""
        rounded = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        return min(
            self.programs, self.warps // warps, REGISTERS // (rounded * warps), self.shared // (shared + RESERVED)
        )


DEVICES = {
    "sm_80": Device(164 << 10, 64, 32),
    "sm_86": Device(100 << 10, 48, 16),
    "sm_89": Device(100 << 10, 48, 24),  # for fp8: all else is as on sm_86
    "sm_90": Device(228 << 10, 64, 32),
}
