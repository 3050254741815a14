"""Warnings in our own code are errors everywhere; other people's are in CI alone, so that no release breaks a clone."""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext

import pytest

EVERYWHERE = pytest.raises(Warning)
IN_CI: AbstractContextManager[object] = EVERYWHERE if os.environ.get("CI") == "true" else nullcontext()


def warn(category: type[Warning], module: str) -> None:
    with warnings.catch_warnings(record=True):  # the filters stay as they are
        warnings.warn_explicit("it is deprecated", category, f"{module}.py", 1, module)


@pytest.mark.parametrize("module", ["octavo.engine.engine", "tests.test_warnings", "benchmarks.serving"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
def test_a_warning_in_our_own_code_is_an_error(category: type[Warning], module: str) -> None:
    with pytest.raises(category):
        warn(category, module)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
def test_other_peoples_warnings_are_errors_in_ci_alone(category: type[Warning]) -> None:
    with IN_CI:
        warn(category, "transformers.models.mixtral")


@pytest.mark.parametrize("category", [ResourceWarning, RuntimeWarning, pytest.PytestUnraisableExceptionWarning])
def test_what_our_code_may_have_leaked_is_an_error_wherever_it_is_found(category: type[Warning]) -> None:
    with pytest.raises(category):
        warn(category, "asyncio.base_events")
