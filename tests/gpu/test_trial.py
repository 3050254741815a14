"""Checks that the trial passes where kernels run, and otherwise says in one sentence what is missing."""

import subprocess
from collections.abc import Callable

import pytest
import torch

from octavo.model.config import ModelError
from octavo.model.kernels.gpu import trial

COMMAND = ["/usr/bin/gcc", "/tmp/x/main.c", "-O3"]
# What Triton 3.6 and 3.7 were seen to raise without each of the things that they need.
MISSING = {
    "a compiler": (RuntimeError("Failed to find C compiler. Please specify via CC."), "Failed to find C compiler"),
    "the one in CC": (FileNotFoundError(2, "No such file or directory", "cc9"), "No such file or directory: 'cc9'"),
    "headers": (subprocess.CalledProcessError(1, COMMAND), r"\(gcc failed with status 1, see above\)"),
    "the driver": (AssertionError("libcuda.so cannot found!\nPlease make sure"), r"\(libcuda.so cannot found!\)"),
    "ptxas": (RuntimeError("Cannot find ptxas"), r"\(Cannot find ptxas\)"),
    "a place": (PermissionError(13, "Permission denied", "/.triton"), "Permission denied: '/.triton'"),
    "a message": (AssertionError(), r"\(AssertionError\)"),
}


def test_where_kernels_run_it_says_nothing(device: torch.device) -> None:
    trial.compile_one(device)


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_said_in_a_sentence(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    error, said = MISSING[what]
    monkeypatch.setattr(trial, "add_norm", raising(error))
    with pytest.raises(ModelError, match=said) as refusal:
        trial.compile_one(device)
    message = str(refusal.value)
    assert "install a C compiler and the headers of Python 3." in message and "TRITON_CACHE_DIR" in message
    assert "\n" not in message and message.endswith(".")


def raising(error: Exception) -> Callable[..., None]:
    def raise_it(*given: object) -> None:
        raise error

    return raise_it
