"""Makes a sparse model from a dense one, on text that somebody brings, and reports what came of it."""
