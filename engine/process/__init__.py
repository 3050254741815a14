"""The engine's process, and whoever starts it, watches it and tries grammars beside it."""
