"""Loads a checkpoint's files into a model on a device."""
