"""Defines what a quantised format must know of one matrix: the tensors that hold it, and how to read them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.loading.quantised.stored import Stored

# Returns a tensor of the file by its name. For one of several experts in one tensor it returns that expert's share.
# Raises KeyError where the file has no such tensor.
Get = Callable[[str], Tensor]

FLOATS = ("F16", "BF16", "F32")  # the names of dtypes are those of safetensors
Shape = tuple[int | None, ...]  # None: any length


@dataclass(frozen=True, slots=True)
class Spec:
    """A Spec says what a tensor must look like."""

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]  # alternatives
    optional: bool = False
    # Some writers add a tensor of zeros, such as a bias; with other values it changes the model, unless the layer has a
    # bias of its own.
    zeros: bool = False

    def allows(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Says whether a tensor may be what is described."""
        return dtype in self.dtypes and self.allows_shape(shape)

    def allows_shape(self, shape: tuple[int, ...]) -> bool:
        return any(_fits(shape, wanted) for wanted in self.shapes)

    def shapes_in_words(self) -> str:
        """Returns the shapes, for an error."""
        shapes = (str(["any" if length is None else length for length in shape]) for shape in self.shapes)
        return " or ".join(shapes).replace("'", "")

    def describe(self) -> str:
        """Returns in a few words what is wanted, for an error."""
        return f"{' or '.join(self.dtypes)} {self.shapes_in_words()}"


class Scheme(ABC):
    """A Scheme is how one matrix [out, in] is stored."""

    @abstractmethod
    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        """Returns what the files must hold of a matrix of the shape [out, in] or, for all experts, [E, out, in].

        The keys are full names of tensors. Raises ModelError for a shape that the format cannot have.
        """

    @abstractmethod
    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Stored:
        """Returns a matrix of the shape [out, in] as the files have it. Raises ModelError for impossible contents."""

    @abstractmethod
    def describe(self) -> str:
        """Returns the format in a few words, such as "GPTQ, 4 bits in groups of 128"."""


def found(get: Get, name: str) -> Tensor | None:
    """Returns a tensor that a file may lack."""
    try:
        return get(name)
    except KeyError:
        return None


def weight_name(module: str, shape: tuple[int, ...]) -> str:
    """Returns the name of a weight; experts in one tensor [E, out, in] are parameters of their layer and end so."""
    return module if len(shape) == 3 else f"{module}.weight"


def stacked(shape: tuple[int, ...], *sizes: int | None) -> Shape:
    """Returns the sizes of one expert's tensor below those that come before [out, in]."""
    return (*shape[:-2], *sizes)


def groups(inputs: int, group: int) -> int:
    """Returns how many groups an output has; 0 is a whole channel."""
    return -(-inputs // group) if group else 1


def whole_words(module: str, size: int, per_word: int, what: str) -> int:
    """Returns how many words of 32 bits hold so many codes. Raises ModelError if the last one would be cut."""
    if size % per_word:
        raise ModelError(
            f"{module} has {size} {what}, which is not a multiple of {per_word}, so its format cannot hold them; "
            "use the config.json that belongs to these weights."
        )
    return size // per_word


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))
