"""Runs `octavo` with an engine that counts instead of a model: serve_fake.py BEHAVIOUR-AS-JSON serve MODEL ..."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    import octavo.engine.startup.build
    from octavo.server.cli import main
    from tests.fake_engine import Behaviour, fake_build

    given = json.loads(sys.argv[1])
    behaviour = Behaviour(**given | {"lives": Path(given["lives"]), "stillborn": tuple(given.get("stillborn", ()))})
    octavo.engine.startup.build.build = fake_build(behaviour)
    sys.exit(main(sys.argv[2:]))
