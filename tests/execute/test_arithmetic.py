"""Integer kernels equal an int64 oracle on any shape; overflow is an error; bad scales and weights are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npusim.errors import BadInputError
from npusim.execute.functions import erf
from npusim.execute.kernels_product import Patches, Spatial, conv, linear, matmul
from npusim.execute.workers import Workers
from npusim.quantize import (
    AccumulatorOverflowError,
    Format,
    check_accumulator,
    decode,
    encode,
    requantize,
    require_exact,
    row_scales,
    scale_for,
)

EXTREMES = {"int8": 127, "int16": 32767}


def integers(drawn: np.random.Generator, shape: tuple[int, ...], dtype: str, mode: str) -> np.ndarray:
    limit = EXTREMES[dtype]
    if mode == "extreme":
        return drawn.choice([-limit, limit], shape).astype(np.int64)
    values = drawn.integers(-limit, limit + 1, shape)
    if mode == "zero channel":
        values[..., 0] = 0
    return np.asarray(values, dtype=np.int64)


def oracle_conv(x: np.ndarray, weight: np.ndarray, geometry: Spatial, groups: int) -> np.ndarray:
    """[h, w, c] with [n, kh, kw, c / groups], one multiply-accumulate after the other, in int64."""
    height, width, channels = x.shape
    outputs = weight.shape[0]
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    result = np.zeros((*geometry.out_hw, outputs), dtype=np.int64)
    for y in range(geometry.out_hw[0]):
        for z in range(geometry.out_hw[1]):
            for i in range(kh):
                for j in range(kw):
                    r, c = y * sh - geometry.pads[0] + i * dh, z * sw - geometry.pads[1] + j * dw
                    if 0 <= r < height and 0 <= c < width:
                        for n in range(outputs):
                            g = n // (outputs // groups)
                            part = x[r, c, g * channels // groups : (g + 1) * channels // groups]
                            result[y, z, n] += int((part * weight[n, i, j]).sum())
    return result


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Spatial, int, int, int]:
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = (
        draw(st.integers(0, 4)),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 4)),
    )
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(max(1, reach[a] - pads[a] - pads[a + 2]), 9)) for a in (0, 1) if True]
    out = [(size[a] + pads[a] + pads[a + 2] - reach[a]) // stride[a] + 1 for a in (0, 1)]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    geometry = Spatial((size[0], size[1]), (out[0], out[1]), kernel, stride, dilation, pads)
    return geometry, groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), groups


@settings(max_examples=150, deadline=None)
@given(
    convolutions(),
    st.integers(0, 2**31),
    st.sampled_from(["int8", "int16"]),
    st.sampled_from(["any", "extreme", "zero channel"]),
)
def test_any_band_of_an_integer_convolution_equals_the_oracle(
    case: tuple[Spatial, int, int, int], seed: int, dtype: str, mode: str
) -> None:
    geometry, channels, outputs, groups = case
    drawn = np.random.default_rng(seed)
    x = integers(drawn, (*geometry.in_hw, channels), dtype, mode)
    weight = integers(drawn, (outputs, *geometry.kernel, channels // groups), "int8", mode)
    expected = oracle_conv(x, weight, geometry, groups)
    first = int(drawn.integers(0, geometry.out_hw[0]))
    last = int(drawn.integers(first + 1, geometry.out_hw[0] + 1))
    low = min(max(0, first * geometry.stride[0] - geometry.pads[0]), geometry.in_hw[0] - 1)
    reach = (geometry.kernel[0] - 1) * geometry.dilation[0] + 1
    high = min(geometry.in_hw[0], max(1, (last - 1) * geometry.stride[0] - geometry.pads[0] + reach))
    box = x[low:high].reshape(1, 1, -1, channels).astype(np.float64)
    found = conv(
        box,
        low * geometry.in_hw[1],
        weight.reshape(1, 1, outputs, -1).astype(np.float64),
        geometry,
        groups,
        (first, last),
    )
    np.testing.assert_array_equal(
        found.reshape(last - first, geometry.out_hw[1], outputs), expected[first:last]
    )


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 700), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31),
    st.sampled_from(["int8", "int16"]), st.sampled_from(["any", "extreme", "zero channel"]),
)  # fmt: skip
def test_integer_linear_maps_and_attention_products_equal_the_oracle(
    rows: int, depth: int, outputs: int, heads: int, seed: int, dtype: str, mode: str
) -> None:
    drawn = np.random.default_rng(seed)
    x, weight = (
        integers(drawn, (1, 1, rows, depth), dtype, mode),
        integers(drawn, (1, 1, outputs, depth), dtype, mode),
    )
    found = linear(x.astype(np.float64), weight.astype(np.float64))
    np.testing.assert_array_equal(found[0, 0], x[0, 0] @ weight[0, 0].T)
    q, k = (
        integers(drawn, (1, heads, rows, depth), dtype, mode),
        integers(drawn, (1, heads, outputs, depth), dtype, mode),
    )
    beside = q.transpose(0, 2, 1, 3).reshape(1, 1, rows, heads * depth)
    scores = matmul(beside.astype(np.float64), k.astype(np.float64), heads, y_rows_are_outputs=True)
    np.testing.assert_array_equal(scores, np.einsum("bhqd,bhkd->bhqk", q, k))


def test_kept_windows_serve_only_the_pixels_that_they_were_made_of() -> None:
    draw = np.random.default_rng(5)
    geometry = Spatial((6, 6), (6, 6), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    one, other = (draw.integers(-9, 9, (1, 1, 36, 4)).astype(np.float64) for _ in range(2))
    weight = draw.integers(-9, 9, (1, 1, 5, 36)).astype(np.float64)
    patches = Patches()
    for x, origin in ((one, "one"), (one, "one"), (other, "other"), (one, None), (other, None), (one, "one")):
        found = conv(x, 0, weight, geometry, 1, (0, 6), patches=patches, origin=origin)
        assert np.array_equal(found, conv(x, 0, weight, geometry, 1, (0, 6)))
    made = []
    for key in ("a", "a", "b", None, None):
        patches.matrix(key, (2, 2), np.float64, lambda found, key=key: made.append(key))
    assert made == ["a", "b", None, None]


@given(
    rows=st.integers(0, 300),
    operations=st.integers(0, 10**9),
    step=st.sampled_from([1, 32]),
    least=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_parts_of_a_kernel_cover_each_row_once_and_begin_at_steps(
    rows: int, operations: int, step: int, least: int
) -> None:
    parts: list[slice] = []
    Workers().share(rows, operations, parts.append, least_parts=least, step=step)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    assert all(part.start % step == 0 for part in parts)


def test_the_widest_sums_of_the_paper_are_exact() -> None:
    """INT8 x INT16 over 11,520 terms needs 37.5 bits, INT16 x INT16 45.5: float64 holds both."""
    x = np.full((1, 1, 1, 11520), 32767.0)
    for largest in (127, 32767):
        weight = np.full((1, 1, 1, 11520), float(largest))
        require_exact(11520, x, weight, "here")
        assert int(linear(x, weight)[0, 0, 0, 0]) == 11520 * 32767 * largest


def test_sums_that_float64_could_round_are_refused() -> None:
    huge = np.asarray([2**31 - 1])
    with pytest.raises(AccumulatorOverflowError, match="53 are summed exactly"):
        require_exact(64, huge, huge, "layer 'conv'")


def test_a_sum_that_does_not_fit_the_accumulator_is_an_error_not_a_wrap() -> None:
    check_accumulator(np.asarray([2.0**31 - 1, -(2.0**31) + 1]), 32, "here")
    with pytest.raises(
        AccumulatorOverflowError,
        match="layer 'conv': a sum of 2147483648 needs 33 bits, the accumulator has 32",
    ):
        check_accumulator(np.asarray([-(2.0**31)]), 32, "layer 'conv'")


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), st.sampled_from(["int8", "int16"]))
def test_encoding_errs_by_half_a_step_and_decoding_is_its_inverse_on_the_grid(
    values: list[float], dtype: str
) -> None:
    real = np.asarray(values).reshape(1, 1, 1, -1)
    form = Format(dtype, scale_for(float(np.abs(real).max()), dtype))
    stored = encode(real, form)
    back = decode(stored, form)
    assert isinstance(form.scale, float)
    assert np.abs(back - real).max() <= form.scale * 0.5001 + 1e-3 * form.scale + 1e-37
    np.testing.assert_array_equal(encode(back, form), stored)


def test_requantization_rounds_half_to_even_and_saturates_symmetrically() -> None:
    found = requantize(np.asarray([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9]), 1.0, "int8")
    assert found.tolist() == [0, 2, 2, 0, -2, 127, -127]


def test_an_all_zero_channel_gets_a_usable_scale_and_stays_zero() -> None:
    weights = np.asarray([[0.0, 0.0], [1.0, -2.0]]).reshape(1, 1, 2, 2)
    scales = row_scales(weights, "int8")
    assert scales[:, 0].tolist() == [1.0, 2.0 / 127]
    assert encode(weights, Format("int8", scales))[0, 0].tolist() == [[0, 0], [64, -127]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(BadInputError, match="NaN or infinite"):
        row_scales(np.asarray([[1.0, bad]]).reshape(1, 1, 1, 2), "int8")


def test_the_error_function_is_right_to_fp32() -> None:
    from math import erf as exact

    x = np.linspace(-6, 6, 5001, dtype=np.float32)
    assert np.abs(erf(x) - np.asarray([exact(float(v)) for v in x])).max() < 1e-6
