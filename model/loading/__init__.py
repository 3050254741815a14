"""From a checkpoint's files to a model on a device."""
