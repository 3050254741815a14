"""Measures Octavo beside transformers and llama.cpp."""
