"""Finds what the references of a JSON schema refer to, and gives each target a name in the new schema."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

PREFIX = "#/$defs/"


class References:
    """References holds the schemas that can be referred to: by address, by anchor, and by a path from either."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._named: dict[tuple[str, str], Any] = {("", ""): root}  # (address, anchor) -> a schema
        self._names: dict[tuple[str, str], str] = {}  # (address, fragment) -> name of its definition
        self._targets: dict[str, tuple[Any, str]] = {}  # name -> (schema, base)
        self._to_define: deque[str] = deque()
        self.base_of_root = self.base_within(root, "")
        self._named[self.base_of_root, ""] = root
        for node, base in _objects(root, self.base_of_root, self.base_within):
            if base != self.base_of_root and base == self.base_within(node, self.base_of_root):
                self._named.setdefault((base, ""), node)
            if isinstance(anchor := node.get("$anchor"), str):
                self._named.setdefault((base, anchor), node)

    def base_within(self, schema: dict[str, Any], base: str) -> str:
        """Returns the address that references within a schema start from."""
        given = schema.get("$id")
        return urldefrag(urljoin(base, given)).url if isinstance(given, str) else base

    def name_of(self, reference: str, base: str) -> str:
        """Returns a reference to the definition that the target has in the new schema. Raises ValueError."""
        address, fragment = urldefrag(urljoin(base, reference) if not reference.startswith("#") else base + reference)
        key = address, unquote(fragment)
        if key not in self._names:
            target = self._find(*key, reference)
            last = "".join(c if c.isalnum() and c.isascii() else "_" for c in key[1].rpartition("/")[2])[:40]
            name = self._names[key] = f"d{len(self._names)}_{last}"
            self._targets[name] = target, address
            self._to_define.append(name)
        return PREFIX + self._names[key]

    def _find(self, address: str, fragment: str, reference: str) -> Any:
        """Raises ValueError when there is nothing at the place."""
        if (address, fragment) in self._named:
            return self._named[address, fragment]
        if (address, "") in self._named and fragment.startswith("/"):
            with suppress(LookupError, ValueError, TypeError):
                return _at(self._named[address, ""], fragment)
            with suppress(
                LookupError, ValueError, TypeError
            ):  # Many write paths from the document's root, whatever the address.
                return _at(self._named["", ""], fragment)
        raise ValueError(f"'{reference[:100]}' refers to nothing in this schema")

    def next_to_define(self) -> tuple[str, Any, str] | None:
        """Returns name, schema and base of a target that was not asked for yet; None when there are no more."""
        if not self._to_define:
            return None
        name = self._to_define.popleft()
        return name, *self._targets[name]

    def target(self, reference: str) -> tuple[Any, str]:
        """Returns what a reference of the new schema stands for, as it was given, and its base."""
        return self._targets[reference.removeprefix(PREFIX)]

    def discriminator(self, given: Any, options: Any) -> dict[str, Any]:
        """Returns OpenAPI's discriminator with the property's values for each option, where a name or mapping says so.

        A mapping's keys are the values. Without one, the name of the schema that an option refers to is its value.
        """
        if not isinstance(given, dict) or not isinstance(options, list):
            return {}
        mapping = given.get("mapping")
        pairs = mapping.items() if isinstance(mapping, dict) else ()
        values = []
        for option in options:
            reference = option.get("$ref") if isinstance(option, dict) else None
            name = reference.rpartition("/")[2] if isinstance(reference, str) else None
            mapped = [key for key, value in pairs if name is not None and value in (reference, name)]
            values.append(mapped or ([] if name is None else [name]))
        return {"propertyName": given.get("propertyName"), "values": values}


def _at(document: Any, path: str) -> Any:
    """Returns what a JSON pointer points to. Raises LookupError, ValueError or TypeError when there is nothing."""
    for part in [] if path == "/" else path[1:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        document = document[int(part) if isinstance(document, list) else part]
        if not isinstance(document, dict | list | bool):
            raise LookupError(part)
    return document


def _objects(
    node: Any, base: str, base_within: Callable[[dict[str, Any], str], str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every object in a document, with the address that references in it start from."""
    waiting = [(node, base)]
    while waiting:
        node, base = waiting.pop()
        if isinstance(node, dict):
            base = base_within(node, base)
            yield node, base
            waiting += [(value, base) for value in node.values()]
        elif isinstance(node, list):
            waiting += [(value, base) for value in node]
