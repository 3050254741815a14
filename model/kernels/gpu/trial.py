"""Compiles and runs one small kernel, to find out whether Triton has all that it needs on this machine."""

import subprocess
import sys
from pathlib import Path

import torch

from octavo.model.config import ModelError
from octavo.model.kernels.gpu.norm import add_norm

SIDE = 16


def compile_one(device: torch.device) -> None:
    """Compiles and runs a kernel. Raises ModelError, which says what failed and what must be there."""
    x = torch.ones(1, SIDE, device=device)
    try:
        add_norm(x, None, x[0], 1e-5)[1].sum().item()
    except Exception as error:  # Errors of Triton, its compilers and its files have no common class.
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ModelError(
            f"Triton cannot compile kernels for this GPU ({_reason(error)}): install a C compiler and the headers of "
            f"Python {python} (on Debian and Ubuntu, gcc and python3-dev), let TRITON_CACHE_DIR name a directory that "
            "can be written to, or serve with --device cpu."
        ) from None


def _reason(error: Exception) -> str:
    """Returns the error in one line. The compiler's own message is already in the log."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} failed with status {error.returncode}, see above"
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
