"""Defines how bodies are read: strictly, with null as absent, and with unknown fields kept aside."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from octavo.server.http.errors import code_of

WRONG_TYPE = "invalid_type"


class Object(BaseModel):
    """An Object keeps unknown fields aside, in model_extra, where ParameterCheck finds those of a request."""

    # The API's document describes each field by its attribute docstring.
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


def refused_as(description: str) -> WrapValidator:
    """Replaces pydantic's complaints about each member of a union by one sentence.

    Its code is that of the member that has the right type, if there is one.
    """

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            codes = [code_of(each) for each in error.errors(include_url=False, include_input=False)]
            code = next((code for code in codes if code != WRONG_TYPE), WRONG_TYPE)
            raise PydanticCustomError("refused", "{complaint}", {"complaint": description, "code": code}) from None

    return WrapValidator(validate)
