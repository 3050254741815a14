"""The benchmarks of a GPU are tested only where triton is installed: its wheels are for Linux."""

import importlib.util

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
