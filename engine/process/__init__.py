"""Runs an engine in a process of its own, starts and watches that process, and tries grammars in another one."""
