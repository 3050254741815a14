"""The C kernels: loaded if they were built when Octavo was installed; without them everything runs through torch."""

from model.kernels.cpu.library import Library, library

__all__ = ["Library", "library"]
