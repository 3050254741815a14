"""Reads the options of `octavo serve` from variables OCTAVO_<FLAG>, and passes over what nobody meant as one."""

import logging
import re
from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from octavo.server.http.errors import StartupError
from octavo.server.options import OPTIONS, PREFIX

logger = logging.getLogger(__name__)

MODEL = PREFIX + "MODEL"

# For each service of a namespace, Kubernetes sets such variables in every pod, as Docker's links did: a service that is
# named octavo gives OCTAVO_PORT=tcp://10.96.0.10:8000 (https://kubernetes.io/docs/concepts/services-networking/service).
_SERVICE = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)


def from_environment(environment: Mapping[str, str], given: Collection[str] = ()) -> dict[str, Any]:
    """Returns the options that variables set; an empty variable counts as absent. Raises StartupError.

    `given` are the options of the command line, which wins: their variables are not looked at. Nor are those that come
    from Kubernetes. What is passed over is told in the log.
    """
    found: dict[str, Any] = {}
    if "model" not in given and (model := environment.get(MODEL)):
        found["model"] = model
    for option in OPTIONS:
        text = environment.get(option.variable)
        if not text or option.key in given:
            continue
        if _SERVICE_URL.fullmatch(text):
            logger.warning(
                "passing over %s=%s, which Kubernetes sets for a service of that name: give --%s",
                option.variable,
                text[:100],
                option.flag,
            )
            continue
        try:
            found[option.key] = option.parse(text)
        except ArgumentTypeError as error:
            raise StartupError(f"The environment variable {option.variable} is wrong: {error}.") from error
    _warn_of_unknown(environment)
    return found


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    """Names the variables that set no flag, each with the one that may be meant."""
    known = [MODEL, *(option.variable for option in OPTIONS)]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not _SERVICE.fullmatch(name):
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            advice = f"; {near[0]} is one that does" if near else ""
            logger.warning("passing over the environment variable %s, which sets no flag%s", name[:100], advice)
