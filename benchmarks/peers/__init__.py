"""Measures Octavo beside transformers, llama.cpp and ik_llama.cpp."""
