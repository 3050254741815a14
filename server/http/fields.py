"""How every shape that clients send is read: strictly, null as absent, unknown fields kept aside."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


class Object(BaseModel):
    """Unknown fields are kept aside, in model_extra: ParameterCheck judges those of a request."""

    # Attribute docstrings describe the fields in the API's document.
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


def refused_as(description: str) -> WrapValidator:
    """One sentence in place of pydantic's complaints about each member of a union."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(description) from None

    return WrapValidator(validate)
