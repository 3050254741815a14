"""Defines how bodies are read: strictly, with null as absent, and with unknown fields kept aside."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


class Object(BaseModel):
    """An Object keeps unknown fields aside, in model_extra, where ParameterCheck finds those of a request."""

    # The API's document describes each field by its attribute docstring.
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


def refused_as(description: str) -> WrapValidator:
    """Replaces pydantic's complaints about each member of a union by one sentence."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(description) from None

    return WrapValidator(validate)
