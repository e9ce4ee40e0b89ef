"""Whole networks: the zoo, every spelling of one U-Net, the onnx package's own models, exports of torch modules."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from npusim import api
from npusim.graph import Graph
from npusim.models import zoo
from npusim.onnx_model import OnnxModel
from npusim.onnx_reader import read_onnx
from npusim.ops import macs_of
from npusim.passes import to_layers
from npusim.scheduler.problem import Infeasible

FIXTURES = Path(__file__).parents[1] / "fixtures"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MACS = 242_754_519_040
SPELLINGS = sorted(p.name.split(".")[1] for p in (FIXTURES / "spellings").glob("*.onnx.xz"))


def total_macs(graph: Graph) -> int:
    return sum(macs_of(graph, layer) for layer in graph.layers)


def attentions(graph: Graph) -> int:
    return len({layer.group for layer in graph.layers if layer.group})


@cache
def spelled(name: str) -> Graph:
    if name in zoo.spellings("bk-sdm-tiny"):
        return api.load_graph(zoo.graph_bytes("bk-sdm-tiny", name), name="bk-sdm-tiny")
    path = FIXTURES / "spellings" / f"bk-sdm-tiny.{name}.onnx.xz"
    return api.load_graph(lzma.decompress(path.read_bytes()), name="bk-sdm-tiny")


@cache
def latency(name: str, tiles: str) -> tuple[float, list[tuple[str, list[str]]]]:
    """Milliseconds; kind and operators of each segment."""
    found = api.profile(spelled(name), tiles=tiles)
    assert not isinstance(found, Infeasible)
    operators = {x.name: x.op for x in found.graph.layers}
    segments = [(s["kind"], [operators[n] for n in s["layers"]]) for s in found.summary["segments"]]
    return found.summary["latency_ms"], segments


@pytest.mark.parametrize("name", zoo.names())
def test_every_zoo_network_is_understood_entirely_with_the_macs_of_its_card(name: str) -> None:
    graph = api.load_graph(name)
    assert graph.coverage.unmodelled == {}
    assert graph.coverage.modelled_nodes == graph.coverage.nodes
    assert total_macs(graph) == zoo.card(name).macs


def test_the_text_encoder_is_masked_attention() -> None:
    graph = api.load_graph("clip-text-encoder")
    assert attentions(graph) == 12
    scores = [layer for layer in graph.layers if layer.name.endswith(".qk")]
    assert all("add" in [e.function for e in layer.epilogue] for layer in scores)


@pytest.mark.parametrize("name", [*zoo.spellings("bk-sdm-tiny"), *SPELLINGS])
def test_every_spelling_of_one_network_gives_the_same_layers(name: str) -> None:
    graph = spelled(name)
    assert graph.coverage.unmodelled == {}
    assert total_macs(graph) == MACS
    assert len(graph.layers) == 266
    assert attentions(graph) == 18
    assert [layer.op for layer in graph.layers] == [layer.op for layer in spelled("dynamo18").layers]


@pytest.mark.parametrize("name", ["legacy17", *SPELLINGS])
def test_every_spelling_of_one_network_takes_the_same_time(name: str) -> None:
    wanted, segments = latency("dynamo18", "sram")
    found, same = latency(name, "sram")
    assert found == pytest.approx(wanted, rel=0.01)
    assert same == segments


def reordered(model: OnnxModel) -> OnnxModel:
    """The same graph with its nodes in another legal order: breadth first."""
    done = {i for n in model.nodes for i in n.inputs} - {o for n in model.nodes for o in n.outputs}
    waiting, nodes = list(model.nodes), []
    while waiting:
        ready = [n for n in waiting if all(i in done for i in n.inputs)]
        nodes += ready[::-1]
        done.update(o for n in ready for o in n.outputs)
        waiting = [n for n in waiting if n not in ready]
    assert tuple(nodes) != model.nodes
    return model.evolve(nodes=tuple(nodes))


@pytest.mark.parametrize("name", ["bk-sdm-tiny", "clip-text-encoder", "sd-vae-decoder"])
def test_layers_do_not_depend_on_the_order_of_the_file(name: str) -> None:
    model = read_onnx(zoo.graph_bytes(name), name=name)
    straight, other = to_layers(model), to_layers(reordered(model))
    assert [(x.op, x.operands, x.epilogue) for x in other.layers] == [
        (x.op, x.operands, x.epilogue) for x in straight.layers
    ]


#: Published multiply-accumulates of the onnx package's models, in millions.
LIGHT_MODELS = {
    "bvlc_alexnet": 655,
    "densenet121": 2834,
    "inception_v1": 1432,
    "inception_v2": 2019,
    "resnet50": 4089,
    "shufflenet": 125,
    "squeezenet": 349,
    "vgg19": 19632,
    "zfnet512": 1482,
}


def test_all_light_models_are_tried() -> None:
    assert {p.stem.removeprefix("light_") for p in LIGHT.glob("*.onnx")} == set(LIGHT_MODELS)


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_models_of_the_onnx_package_are_read_planned_and_simulated(name: str) -> None:
    found = api.profile(LIGHT / f"light_{name}.onnx", tiles="sram")
    assert not isinstance(found, Infeasible)
    assert found.graph.coverage.unmodelled == {}
    assert round(total_macs(found.graph) / 1e6) == LIGHT_MODELS[name]
    assert int(found.program.commands.macs.sum()) == total_macs(found.graph)
    assert 0 < found.summary["lower_bound_ms"] <= found.summary["latency_ms"]


def test_batch_norms_of_a_residual_network_are_folded_into_its_convolutions() -> None:
    graph = api.load_graph(LIGHT / "light_resnet50.onnx")
    assert {layer.op for layer in graph.layers} == {"conv", "pool", "linear", "softmax"}
    normalized = [t for t in graph.of_kind("weight") if t.normalization is not None]
    assert len(normalized) == 2 * 53


#: Multiply-accumulates by torch's own counter, plus two products per attention, which it leaves out on the CPU.
FOREIGN = {
    "resnet": (889_229_312, 0),
    "mobilenet": (95_074_560, 0),
    "segmentation-unet": (2_315_255_808, 0),
    "vit": (203_386_368 + 2 * 2 * 197 * 197 * 192, 2),
    "speech-encoder": (2_082_816_000 + 2 * 2 * 500 * 500 * 384, 2),
    "speech-decoder": (274_956_288 + 2 * 32 * (32 + 500) * 384, 2),
}


@cache
def foreign(name: str, spelling: str) -> Graph:
    path = FIXTURES / "foreign" / f"{name}.{spelling}.onnx.xz"
    return api.load_graph(lzma.decompress(path.read_bytes()), name=name)


@pytest.mark.parametrize("spelling", ["dynamo18", "legacy17"])
@pytest.mark.parametrize("name", FOREIGN)
def test_networks_that_npusim_was_not_made_for_are_understood_entirely(name: str, spelling: str) -> None:
    macs, count = FOREIGN[name]
    graph = foreign(name, spelling)
    assert graph.coverage.unmodelled == {}
    assert total_macs(graph) == macs
    assert attentions(graph) == count


@pytest.mark.parametrize("tiles", ["none", "sram", "auto"])
@pytest.mark.parametrize("name", FOREIGN)
def test_networks_that_npusim_was_not_made_for_are_planned_and_simulated(name: str, tiles: str) -> None:
    found = api.profile(foreign(name, "dynamo18"), tiles=tiles)
    assert not isinstance(found, Infeasible)
    assert int(found.program.commands.macs.sum()) == FOREIGN[name][0]


@pytest.mark.parametrize("name", FOREIGN)
def test_both_exporters_give_the_same_foreign_layers(name: str) -> None:
    one, two = (foreign(name, s) for s in ("dynamo18", "legacy17"))
    assert [layer.op for layer in one.layers] == [layer.op for layer in two.layers]


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["dynamo18", "legacy17"])
@pytest.mark.parametrize("name", FOREIGN)
def test_networks_that_npusim_was_not_made_for_compute_what_onnxruntime_computes(
    name: str, spelling: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    import importlib.util
    import warnings

    from npusim.deployment import run_onnxruntime
    from npusim.execute.formats import numbers_for
    from npusim.execute.run import execute
    from npusim.weights import open_weights

    script = Path(__file__).parents[2] / "tools" / "make_foreign.py"
    spec = importlib.util.spec_from_file_location("make_foreign", script)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        onnx.save(tool.export(name, spelling), path)
    found = api.profile(path, precision="fp32", tiles="sram")
    assert not isinstance(found, Infeasible)
    drawn = np.random.default_rng(1)
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.load(path).graph.input}
    inputs = {
        w.name: drawn.integers(0, 5000, w.shape)
        if kinds[w.name] == onnx.TensorProto.INT64
        else drawn.standard_normal(w.shape).astype(np.float32)
        for w in found.graph.inputs
    }
    numbers = numbers_for(found.graph, found.plan, open_weights(path, found.graph))
    ours = execute(found.graph, found.plan, found.program, numbers, inputs)
    for output, wanted in run_onnxruntime(path, inputs).items():
        assert np.abs(ours[output] - wanted).max() <= 2e-5 * np.abs(wanted).max()
