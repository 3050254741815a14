"""The C kernels: loaded if they were built when Octavo was installed; without them everything runs through torch."""
