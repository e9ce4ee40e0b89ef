"""What all tests share: a small builder of ONNX models, the real U-Net's profiles (made once), `--update-baselines`."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npusim import api
from npusim.graph import Graph

BASELINES = Path(__file__).parent / "baselines"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background deaf to Ctrl-C, and so would be every command that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1440,900",
)  # fmt: skip


@pytest.fixture(scope="session")
def open_browser() -> Callable[[Path], Any]:
    """Opens a headless chromium on a profile folder, with console and network logs; skips, with the reason, if there is none."""
    selenium = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (pip install selenium)"
    )
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium is not installed (apt-get install chromium chromium-driver)")

    def opened(profile: Path) -> Any:
        options = selenium.ChromeOptions()
        options.binary_location = chromium
        for flag in (*CHROMIUM, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        return selenium.Chrome(options=options, service=selenium.ChromeService(driver))

    return opened


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-baselines",
        action="store_true",
        help="rewrite tests/baselines/*.json with what the core says now",
    )


class Net:
    """Builds an ONNX model node by node, in the spellings that exporters leave; every method returns value names.

    Shapes are tracked here, not read back from npusim. Weights are seeded by their order, so that a model can also be run.
    """

    def __init__(self, *, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self._random = np.random.default_rng(0)

    # ---- pieces ---------------------------------------------------------------------------------------------------

    def input(self, name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        """A run-time input; a size may be a symbol."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self.shapes[name] = shape
        return name

    def constant(self, data: Any, name: str = "") -> str:
        """An initializer."""
        array = np.asarray(data)
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        self.shapes[name] = array.shape
        return name

    def weight(self, *shape: int) -> str:
        """An initializer of small seeded numbers."""
        size = max(1, prod(shape[1:]))
        return self.constant((self._random.standard_normal(shape) / size**0.5).astype(np.float32))

    def ints(self, *values: int) -> str:
        """A constant shape or index."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[Any], *, name: str = "", **attributes: Any
    ) -> str:
        """Any operator with one output of the given shape."""
        out = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=name or f"{op}_{len(self.nodes)}", **attributes)
        )
        self.shapes[out] = tuple(shape)
        return out

    def output(self, *values: str) -> Net:
        """Make values outputs of the model; returns the builder."""
        for value in values:
            self.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, self.shapes[value]))
        return self

    def proto(self) -> Any:
        """The model."""
        foreign = [o for n in self.nodes if n.domain for o in n.output]  # nobody can infer their shapes
        known = [helper.make_tensor_value_info(o, TensorProto.FLOAT, self.shapes[o]) for o in foreign]
        outputs = {o.name for o in self.outputs}
        graph = helper.make_graph(
            self.nodes, "net", self.inputs, self.outputs, self.initializers,
            value_info=[v for v in known if v.name not in outputs],
        )  # fmt: skip
        domains = sorted({n.domain for n in self.nodes if n.domain})
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(graph, opset_imports=imports, producer_name="tests")

    def bytes(self) -> bytes:
        """The model, serialized."""
        data: bytes = self.proto().SerializeToString()
        return data

    def graph(self, **options: Any) -> Graph:
        """The model as npusim's layers."""
        return api.load_graph(self.bytes(), **options)

    # ---- shapes ---------------------------------------------------------------------------------------------------

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.ints(*shape)], shape)

    def transpose(self, x: str, *order: int) -> str:
        return self.node("Transpose", [x], [self.shapes[x][i] for i in order], perm=order)

    def concat(self, *values: str, axis: int = 1) -> str:
        shape = list(self.shapes[values[0]])
        shape[axis] = sum(self.shapes[v][axis] for v in values)
        return self.node("Concat", values, shape, axis=axis)

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        shape = list(self.shapes[x])
        shape[axis] = stop - start
        return self.node("Slice", [x, self.ints(start), self.ints(stop), self.ints(axis)], shape)

    # ---- layers ---------------------------------------------------------------------------------------------------

    def conv(
        self, x: str, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> str:
        n, c, h, w = self.shapes[x]
        pad = kernel // 2
        size = [(s + 2 * pad - kernel) // stride + 1 for s in (h, w)]
        weights = [
            self.weight(outputs, c // groups, kernel, kernel),
            *([self.weight(outputs)] if bias else []),
        ]
        return self.node(
            "Conv", [x, *weights], (n, outputs, *size), kernel_shape=[kernel, kernel], pads=[pad] * 4, strides=[stride] * 2,
            group=groups,
        )  # fmt: skip

    def linear(self, x: str, outputs: int, *, bias: bool = True) -> str:
        """MatMul, then Add: what both exporters write for three-dimensional inputs."""
        shape = (*self.shapes[x][:-1], outputs)
        y = self.node("MatMul", [x, self.weight(self.shapes[x][-1], outputs)], shape)
        return self.node("Add", [self.weight(outputs), y], shape) if bias else y

    def add(self, x: str, y: str) -> str:
        return self.node("Add", [x, y], self.shapes[x])

    def mul(self, x: str, y: str) -> str:
        return self.node("Mul", [x, y], self.shapes[x])

    def silu(self, x: str) -> str:
        return self.mul(x, self.node("Sigmoid", [x], self.shapes[x]))

    def gelu(self, x: str) -> str:
        """x/2 (1 + erf(x / sqrt 2)), as exporters spell it at opset 18 and below."""
        shape = self.shapes[x]
        scaled = self.node("Div", [x, self.constant(np.float32(2**0.5))], shape)
        one = self.node("Add", [self.node("Erf", [scaled], shape), self.constant(np.float32(1))], shape)
        return self.mul(self.mul(x, one), self.constant(np.float32(0.5)))

    def group_norm(self, x: str, groups: int) -> str:
        """Reshape - InstanceNormalization - Reshape - Mul - Add."""
        n, c, h, w = self.shapes[x]
        flat = self.node("Reshape", [x, self.ints(0, groups, -1)], (n, groups, c // groups * h * w))
        ones, zeros = self.constant(np.ones(groups, np.float32)), self.constant(np.zeros(groups, np.float32))
        normed = self.node("InstanceNormalization", [flat, ones, zeros], self.shapes[flat], epsilon=1e-5)
        back = self.reshape(normed, n, c, h, w)
        return self.add(self.mul(back, self.weight(c, 1, 1)), self.weight(c, 1, 1))

    def layer_norm(self, x: str) -> str:
        cols = self.shapes[x][-1]
        return self.node(
            "LayerNormalization",
            [x, self.weight(cols), self.weight(cols)],
            self.shapes[x],
            axis=-1,
            epsilon=1e-5,
        )

    def geglu(self, x: str, inner: int) -> str:
        """Linear to 2 x inner, halves, value x gelu(gate)."""
        wide = self.linear(x, 2 * inner)
        last = len(self.shapes[wide]) - 1
        return self.mul(self.slice(wide, last, 0, inner), self.gelu(self.slice(wide, last, inner, 2 * inner)))

    def resize(self, x: str, factor: int = 2) -> str:
        n, c, h, w = self.shapes[x]
        scales = self.constant(np.asarray([1, 1, factor, factor], dtype=np.float32))
        return self.node(
            "Resize", [x, "", scales], (n, c, h * factor, w * factor), mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, x: str, heads: int, *, context: str = "", spelled: str = "4d") -> str:
        """Projections, scaled dot-product attention, output projection.

        `4d` keeps heads as a dimension, `3d` folds them into the batch (older exporters).
        """
        n, length, width = self.shapes[x]
        source = context or x
        keys = self.shapes[source][1]
        q, k, v = (
            self.linear(x, width, bias=False),
            self.linear(source, width, bias=False),
            self.linear(source, width, bias=False),
        )
        split = [self._heads(t, heads) for t in (q, k, v)]
        if spelled == "3d":
            split = [self.reshape(t, n * heads, self.shapes[t][2], width // heads) for t in split]
        q, k, v = split
        lead = self.shapes[q][:-2]
        rank = len(lead) + 2
        turned = self.transpose(k, *range(rank - 2), rank - 1, rank - 2)
        scores = self.node("MatMul", [q, turned], (*lead, length, keys))
        scaled = self.mul(scores, self.constant(np.float32((width // heads) ** -0.5)))
        out = self.node(
            "MatMul", [self.node("Softmax", [scaled], self.shapes[scaled], axis=-1), v], self.shapes[q]
        )
        if spelled == "3d":
            out = self.reshape(out, n, heads, length, width // heads)
        return self.linear(self.reshape(self.transpose(out, 0, 2, 1, 3), n, length, width), width)

    def _heads(self, x: str, heads: int) -> str:
        n, length, width = self.shapes[x]
        return self.transpose(self.reshape(x, n, length, heads, width // heads), 0, 2, 1, 3)

    def transformer(self, x: str, heads: int, *, context: str = "", spelled: str = "4d") -> str:
        """Self-attention, cross-attention if there is a context, gated feed-forward; residuals around each."""
        x = self.add(self.attention(self.layer_norm(x), heads, spelled=spelled), x)
        if context:
            x = self.add(self.attention(self.layer_norm(x), heads, context=context, spelled=spelled), x)
        width = self.shapes[x][-1]
        return self.add(self.linear(self.geglu(self.layer_norm(x), 2 * width), width), x)

    def resnet(self, x: str, outputs: int, groups: int) -> str:
        """GroupNorm - SiLU - Conv, twice, and a residual (through a 1x1 convolution where channels change)."""
        y = self.conv(self.silu(self.group_norm(x, groups)), outputs)
        y = self.conv(self.silu(self.group_norm(y, groups)), outputs)
        return self.add(y, x if self.shapes[x][1] == outputs else self.conv(x, outputs, 1))

    def spatial_transformer(
        self, x: str, heads: int, groups: int, *, context: str = "", spelled: str = "4d"
    ) -> str:
        """GroupNorm, image to sequence, transformer, back, residual."""
        n, c, h, w = self.shapes[x]
        y = self.reshape(self.transpose(self.group_norm(x, groups), 0, 2, 3, 1), n, h * w, c)
        y = self.transformer(self.linear(y, c), heads, context=context, spelled=spelled)
        y = self.transpose(self.reshape(self.linear(y, c), n, h, w, c), 0, 3, 1, 2)
        return self.add(y, x)

    def unet(
        self, *, batch: int = 1, size: int = 8, width: int = 16, heads: int = 2, spelled: str = "4d"
    ) -> Net:
        """Two levels with a skip connection, self- and cross-attention: every kind of layer of a real U-Net."""
        x = self.input("sample", batch, 4, size, size)
        context = self.input("context", batch, 5, 12)
        skip = self.conv(x, width)
        down = self.conv(self.resnet(skip, width, 4), width, stride=2)
        middle = self.spatial_transformer(
            self.resnet(down, 2 * width, 4), heads, 4, context=context, spelled=spelled
        )
        up = self.conv(self.resize(middle), width)
        joined = self.resnet(self.concat(up, skip), width, 4)
        return self.output(self.conv(self.silu(self.group_norm(joined, 4)), 4))


@pytest.fixture(scope="session")
def net() -> Callable[..., Net]:
    """The builder: `net()` starts a model."""
    return Net


# ---- the real network ---------------------------------------------------------------------------------------------------


@cache
def _unet() -> Graph:
    return api.load_graph("bk-sdm-tiny")


@cache
def _unet_profile(tiles: str, policy: Any) -> api.Profile:
    found = api.profile(_unet(), tiles=tiles, policy=policy)
    assert isinstance(found, api.Profile)
    return found


@pytest.fixture(scope="session")
def unet() -> Graph:
    """BK-SDM-Tiny's U-Net, full size, as layers."""
    return _unet()


@pytest.fixture(scope="session")
def unet_profile() -> Callable[[str, str], api.Profile]:
    """Its profile by (tiles, policy), at w8a16 on the default hardware; each is made once per session."""
    return _unet_profile


@pytest.fixture(scope="session")
def update_baselines(request: pytest.FixtureRequest) -> bool:
    """Whether `--update-baselines` was given."""
    return bool(request.config.getoption("--update-baselines"))


def check_model(net: Net) -> None:
    """Raise where the builder itself made a model that ONNX refuses."""
    onnx.checker.check_model(net.proto(), full_check=True)
