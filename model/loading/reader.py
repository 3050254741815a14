"""Reads the matrices of a checkpoint, whether it has them as they were trained or quantised, and checks its files."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.model.config import ModelError
from octavo.model.loading.names import TensorSlice
from octavo.model.loading.quantised.recognise import Quantisation, check_not_quantised, description_of
from octavo.model.loading.quantised.scheme import FLOATS, Scheme, Spec
from octavo.model.loading.quantised.stored import Stored
from octavo.model.loading.shards import Shards

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Reader:
    """A Reader returns slices of matrices from the files of one checkpoint."""

    shards: Shards
    quantisation: Quantisation | None  # None: all is stored as it was trained

    @classmethod
    def of(cls, shards: Shards) -> "Reader":
        """Raises ModelError for a quantised checkpoint whose description is missing, contradictory or unknown."""
        description = description_of(shards.directory)
        if description is None:
            check_not_quantised(shards.directory, shards.files)
            return cls(shards, None)
        return cls(shards, description.over(shards.files))

    def scheme(self, source: TensorSlice) -> Scheme | None:
        """Returns how a slice is quantised; None: it is stored as it is."""
        is_matrix = source.name.endswith(WEIGHT) or source.expert is not None
        return self.quantisation.of(_module(source)) if self.quantisation is not None and is_matrix else None

    def specs(self, source: TensorSlice) -> dict[str, Spec]:
        """Returns the tensors that hold a slice."""
        scheme = self.scheme(source)
        if scheme is None:
            return {source.name: Spec(FLOATS, (source.shape,))}
        return scheme.tensors(_module(source), _upright(source))

    def check(self, expected: Mapping[str, TensorSlice]) -> None:
        """Holds the files' headers against the slices of a model. Raises ModelError that names what differs."""
        if self.quantisation is not None:
            self.quantisation.try_expressions({_module(source) for source in expected.values()})
        specs: dict[str, Spec] = {}
        for source in expected.values():
            specs |= self.specs(source)
        # A bias that the model has is no bias of zeros that a format allows.
        specs |= {name: self.specs(source)[name] for name, source in expected.items() if self.scheme(source) is None}
        passed_over = frozenset() if self.quantisation is None else self.quantisation.passed_over()
        self.shards.check(specs, passed_over)
        for name, spec in specs.items():
            if spec.zeros and name not in expected and name in self.shards.files and self._get(name).float().any():
                raise ModelError(
                    f"The tensor {name} in {self.shards.directory} changes the model, and config.json speaks of no "
                    "bias; use the config.json that belongs to these weights."
                )

    def read(self, source: TensorSlice) -> Stored | Tensor:
        """Returns a slice [out, in] as the files have it; a plain tensor is a view of the file."""
        scheme = self.scheme(source)
        if scheme is None:
            return self.shards.read(source)

        def get(name: str) -> Tensor:
            tensor = self._get(name)
            return tensor if source.expert is None else tensor[source.expert]

        out, inputs = _upright(source)[-2:]
        whole = scheme.read(get, _module(source), (out, inputs))
        return whole if source.every is None else whole.rows(slice(source.every[0], None, source.every[1]))

    def rows(self, source: TensorSlice) -> Tensor:
        """Returns the weights of a slice in a floating type: a view of the file, or what its integers mean."""
        found = self.read(source)
        return found if isinstance(found, Tensor) else found.dense()

    def _get(self, name: str) -> Tensor:
        if name not in self.shards.files:
            raise KeyError(name)
        return self.shards.files[name].get_tensor(name)


def _module(source: TensorSlice) -> str:
    return source.name.removesuffix(WEIGHT)


def _upright(source: TensorSlice) -> tuple[int, ...]:
    """Returns [out, in], or [E, out, in] of all experts in one tensor, whichever of the two the file has first."""
    return (*source.shape[:-2], source.shape[-1], source.shape[-2]) if source.transposed else source.shape
