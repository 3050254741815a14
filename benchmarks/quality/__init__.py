"""Measures what weight types cost in quality, Octavo's and those of llama.cpp and ik_llama.cpp."""
