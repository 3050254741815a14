"""The C kernels run if they were built when Octavo was installed; without them everything runs through torch."""
