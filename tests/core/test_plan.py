"""Law 9: plans survive JSON, lower to the Program of their hash, validate against their schema, and repeat to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import api
from npusim.errors import PlanError
from npusim.graph import Graph
from npusim.lower import lower
from npusim.plan import PLAN_SCHEMA, load_plan, parse_plan, plan_schema

Net = Any
jsonschema: Any = pytest.importorskip("jsonschema")
SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "plan.schema.json"


@pytest.fixture(scope="module")
def graph(net: Callable[..., Net]) -> Graph:
    found: Graph = net().unet().graph()
    return found


@pytest.fixture(
    scope="module", params=[("none", "serial"), ("sram", "decoupled"), ("auto", "decoupled"), ("3", "serial")]
)
def found(request: pytest.FixtureRequest, graph: Graph) -> api.Profile:
    tiles, policy = request.param
    made = api.profile(
        graph, tiles=tiles, policy=policy, npu="toy", precision="w8a8" if tiles == "3" else "w8a16"
    )
    assert isinstance(made, api.Profile)
    return made


def test_plan_to_json_to_plan_is_identity(found: api.Profile) -> None:
    text = found.plan.to_json()
    again = parse_plan(text, where="plan.json")
    assert again == found.plan
    assert again.to_json() == text


def test_the_read_plan_lowers_to_the_program_of_its_hash(found: api.Profile) -> None:
    again = parse_plan(found.plan.to_json(), where="plan.json")
    program = lower(found.graph, again)
    assert program.sha256() == again.program_sha256 == found.program.sha256()
    assert len(program) == len(found.program)


def test_the_plan_validates_against_its_schema(found: api.Profile) -> None:
    jsonschema.Draft202012Validator.check_schema(plan_schema())
    jsonschema.validate(json.loads(found.plan.to_json()), plan_schema())


def test_the_schema_refuses_what_is_no_plan(found: api.Profile) -> None:
    data = json.loads(found.plan.to_json())
    spoiled: tuple[dict[str, Any], ...] = ({"surprise": 1}, {"tensors": 3}, {"options": {}})
    for spoil in spoiled:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, **spoil}, plan_schema())


def test_the_published_schema_is_the_one_that_is_used() -> None:
    assert json.loads(SCHEMA_FILE.read_text("utf-8")) == json.loads(json.dumps(plan_schema()))


def test_the_plan_embeds_its_hardware_and_the_hash_of_its_model(found: api.Profile) -> None:
    data = json.loads(found.plan.to_json())
    assert data["npu"]["sram"]["sram_bytes"] == 65_536
    assert data["npu"]["sources"]
    assert data["model"]["sha256"] == found.graph.model_sha256
    assert data["schema_version"] == PLAN_SCHEMA


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ["none", "sram", "auto"])
def test_the_real_plan_keeps_law_9(unet_profile: Callable[[str, str], api.Profile], tiles: str) -> None:
    made = unet_profile(tiles, "decoupled")
    again = parse_plan(made.plan.to_json(), where="plan.json")
    assert again == made.plan
    assert lower(made.graph, again).sha256() == made.plan.program_sha256
    jsonschema.validate(json.loads(made.plan.to_json()), plan_schema())


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list, not a plan"),
        ("{}", "schema version None"),
        ('{"schema_version": 99}', "schema version 99; this npusim reads 1"),
        ('{"schema_version": 1}', "npusim_version"),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, where="plan.json")
    assert str(caught.value).startswith("plan.json: ")
    assert says in str(caught.value)


def test_a_plan_of_another_model_is_refused(found: api.Profile, net: Callable[..., Net]) -> None:
    n = net()
    other = n.output(n.linear(n.input("x", 1, 4, 8), 8)).graph()
    with pytest.raises(PlanError, match="does not match"):
        lower(other, found.plan)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "plan.json")


# ---- the same inputs give the same bytes ----------------------------------------------------------------------------------


def run_directory(model: str, out: Path, seed: int, *options: str) -> dict[str, bytes]:
    """Files of a run made in its own process."""
    command = [
        sys.executable,
        "-c",
        "from npusim.cli import main; main()",
        "profile",
        model,
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    subprocess.run([*command, "--quiet", *options], check=True, env=environment, capture_output=True)
    return {p.name: p.read_bytes() for p in out.iterdir()}


def same_bytes(model: str, folder: Path, *options: str) -> None:
    first, second = (run_directory(model, folder / str(seed), seed, *options) for seed in (1, 2))
    assert set(first) == {"plan.json", "summary.json", "trace.json", "report.html"}
    for name, data in first.items():
        assert data == second[name], name


@pytest.mark.parametrize("tiles", ["auto", "none"])
def test_two_processes_with_different_hash_seeds_write_the_same_bytes(
    net: Callable[..., Net], tmp_path: Path, tiles: str
) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(net().unet().bytes())
    same_bytes(str(model), tmp_path, "--npu", "toy", "--tiles", tiles)


@pytest.mark.slow
def test_two_processes_profile_the_real_u_net_to_the_same_bytes(tmp_path: Path) -> None:
    same_bytes("bk-sdm-tiny", tmp_path, "--tiles", "auto")


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ({"Q": [0]}, r"has engines Q \[0\]"),
        ({}, "has engines none"),
        ({"TE": [7]}, r"has engines TE \[7\]"),
        ({"TE": []}, r"has engines TE \[\]"),
        ({"TE": [0], "vector": [0]}, r"has engines TE \[0\], vector \[0\]"),
    ],
)
def test_engines_that_the_hardware_does_not_have_are_refused(
    found: api.Profile, engines: dict[str, list[int]], said: str
) -> None:
    data = json.loads(found.plan.to_json())
    kind = data["npu"]["tensor_engine"][0]["kind"]
    data["layers"][0]["engines"] = {k.replace("TE", kind): v for k, v in engines.items()}
    with pytest.raises(PlanError, match=said.replace("TE", kind)) as error:
        parse_plan(json.dumps(data), where="plan.json")
    assert str(error.value).startswith("plan.json: layer '")
    assert "profile the model again" in str(error.value)
