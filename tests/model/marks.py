"""Holds the marks of tests that only some machines can run."""

import pytest

from octavo.model.weights.precision import fp16_works

needs_fbgemm = pytest.mark.skipif(not fp16_works(), reason="needs FBGEMM on x86")
