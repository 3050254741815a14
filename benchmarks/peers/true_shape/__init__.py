"""Loads checkpoints of Mixtral 8x7B's true shape, quantised, beside llama.cpp with GGUF files of the same shape."""
