"""Local checkpoints: real weights reach the ONNX file, and what is wrong is refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.errors import BadInputError, NpusimError, OutputError
from npusim.models import checkpoints, onnx_export, zoo
from npusim.models.architectures import ARCHITECTURES, Architecture

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 100,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
PIXART: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "out_channels": 8,
    "cross_attention_dim": 16,
    "caption_channels": 24,
    "sample_size": 16,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 32,
}
TINY_AUTOENCODER: dict[str, Any] = {
    "encoder_block_out_channels": (16, 16),
    "decoder_block_out_channels": (16, 16),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
CONFIGS = {
    "UNet2DConditionModel": UNET,
    "PixArtTransformer2DModel": PIXART,
    "AutoencoderKL": AUTOENCODER,
    "AutoencoderTiny": TINY_AUTOENCODER,
    "CLIPTextModel": TEXT_ENCODER,
}


def saved(folder: Path, class_name: str, seed: int = 1, **options: Any) -> Path:
    """A checkpoint of a small network of `class_name`, written by the library's own save_pretrained."""
    architecture = Architecture(
        library="transformers" if class_name == "CLIPTextModel" else "diffusers",
        class_name=class_name,
        config=CONFIGS[class_name],
        inputs=(),
    )
    network = onnx_export.seeded_network(architecture, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("unet"), "UNet2DConditionModel")


@pytest.fixture
def unet(unet_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(unet_folder, tmp_path / "checkpoint")


def refusal(folder: Path, name: str = "custom") -> str:
    with pytest.raises(BadInputError) as refused:
        checkpoints.load(name, folder)
    return str(refused.value)


def test_the_folder_above_names_those_that_hold_a_network(unet: Path) -> None:
    unet.rename(unet.parent / "unet")
    assert refusal(unet.parent).endswith(
        "has no config.json; give a folder written by save_pretrained, such as its own unet"
    )


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def outputs(path: Path, architecture: Architecture, network: Any) -> tuple[Any, Any]:
    """onnxruntime's and torch's outputs for the same seeded inputs."""
    runtime = pytest.importorskip("onnxruntime")
    from npusim.models.traced import traced

    random = np.random.default_rng(0)
    feeds = {
        spec.name: random.integers(0, 50, spec.shape)
        if spec.dtype == "int64"
        else random.standard_normal(spec.shape).astype(np.float32)
        for spec in architecture.inputs
    }
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = traced(network, architecture)(*map(torch.from_numpy, feeds.values()))
    return session.run(None, feeds)[0], expected.numpy()


def test_a_diffusers_folder_becomes_onnx_with_its_real_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "taesd", "AutoencoderTiny")
    path = checkpoints.build("custom", out=tmp_path / "out", weights=folder)
    assert path == tmp_path / "out" / "custom.onnx"
    found, expected = outputs(path, *checkpoints.load("custom", folder))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("class_name", CONFIGS)
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_every_class_keeps_its_numbers_under_both_exporters(
    class_name: str, exporter: onnx_export.Exporter, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "checkpoint", class_name)
    path = checkpoints.build("custom", out=tmp_path / "x.onnx", weights=folder, exporter=exporter)
    found, expected = outputs(path, *checkpoints.load("custom", folder))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("class_name", CONFIGS)
def test_weights_are_those_of_the_folder_not_fresh_ones(class_name: str, tmp_path: Path) -> None:
    _, one = checkpoints.load("custom", saved(tmp_path / "one", class_name, seed=1))
    _, two = checkpoints.load("custom", saved(tmp_path / "two", class_name, seed=2))
    first = next(iter(one.state_dict()))
    assert not torch.equal(one.state_dict()[first], two.state_dict()[first])


def test_sharded_weights_are_read_from_all_their_files(unet_folder: Path, tmp_path: Path) -> None:
    sharded = saved(tmp_path / "sharded", "UNet2DConditionModel", max_shard_size="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    _, whole = checkpoints.load("custom", unet_folder)
    _, joined = checkpoints.load("custom", sharded)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(joined.state_dict()[name], tensor)


def test_a_pipeline_folder_is_searched_for_its_unet(unet: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(unet, pipeline / "unet")
    (pipeline / "model_index.json").write_text("{}")
    architecture, _ = checkpoints.load("custom", pipeline)
    assert architecture.class_name == "UNet2DConditionModel"


def shape_of(architecture: Architecture, name: str) -> tuple[int, ...]:
    return next(spec.shape for spec in architecture.inputs if spec.name == name)


def test_a_unet_takes_as_many_tokens_as_the_text_encoder_beside_it_writes(unet: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(unet, pipeline / "unet")
    alone, _ = checkpoints.load("custom", pipeline / "unet")
    assert shape_of(alone, "encoder_hidden_states") == (1, 77, 32)
    beside = pipeline / "text_encoder" / "config.json"
    beside.parent.mkdir()
    beside.write_text('{"max_position_embeddings": 20}')
    found, network = checkpoints.load("custom", pipeline / "unet")
    assert shape_of(found, "encoder_hidden_states") == (1, 20, 32)
    path = checkpoints.build("custom", out=tmp_path / "out", weights=pipeline / "unet")
    ours, expected = outputs(path, found, network)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    for wrong in ("0", "true", '"many"', "1e9"):
        beside.write_text(f'{{"max_position_embeddings": {wrong}}}')
        assert "text_encoder/config.json: 'max_position_embeddings' is" in refusal(pipeline / "unet")


def test_fp16_weights_give_an_fp16_network(unet_folder: Path) -> None:
    _, network = checkpoints.load("custom", unet_folder, dtype="fp16")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}


@pytest.fixture
def small_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's SD-v1.5 shrunk to the size of the tests' U-Net."""
    from npusim.models.architectures.unet_sd import latent_unet

    monkeypatch.setattr(zoo, "ARCHITECTURES", {**ARCHITECTURES, "sd-v1.5": latent_unet(UNET)})


@pytest.mark.usefixtures("small_zoo")
def test_a_folder_of_the_named_network_is_accepted(unet_folder: Path) -> None:
    architecture, _ = checkpoints.load("sd-v1.5", unet_folder)
    assert architecture.config == UNET


@pytest.mark.usefixtures("small_zoo")
def test_a_lone_safetensors_file_of_the_named_network_is_accepted(unet_folder: Path) -> None:
    _, network = checkpoints.load("sd-v1.5", next(unet_folder.glob("*.safetensors")))
    _, same = checkpoints.load("sd-v1.5", unet_folder)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


@pytest.mark.usefixtures("small_zoo")
def test_a_setting_that_changes_the_arithmetic_but_no_shape_is_refused(unet: Path) -> None:
    edit_config(unet, attention_head_dim=8)
    assert "'attention_head_dim' is 8; 'sd-v1.5' has 4" in refusal(unet, "sd-v1.5")
    edit_config(unet, attention_head_dim=4, act_fn="relu")
    assert "'act_fn' is 'relu'; 'sd-v1.5' has 'silu'" in refusal(unet, "sd-v1.5")


@pytest.mark.usefixtures("small_zoo")
def test_a_null_or_false_setting_of_another_version_is_accepted(unet: Path) -> None:
    edit_config(unet, only_cross_attention=None, upcast_attention=None, use_linear_projection=None)
    checkpoints.load("sd-v1.5", unet)


def test_random_weights_are_those_of_the_seed() -> None:
    weights = [
        onnx_export.seeded_network(zoo.architecture("taesd-decoder"), seed=seed).decoder.layers[0].weight
        for seed in (3, 3, 4)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def pickled(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.with_suffix(".bin").write_bytes(pickle.dumps({}))
    weights.unlink()


def truncated(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def without_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def linked_outside(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    outside = folder.parent / "canary.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)


def link_loop(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.unlink()
    weights.symlink_to(weights.name)


def index_naming(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        without_weights(folder)
        index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def index_of(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        without_weights(folder)
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)

    return damage


def config_text(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(text)

    return damage


def config_with(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def weights_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def not_a_number(tensors: dict[str, Any]) -> None:
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled": (pickled, r"has only pickled weights .* only safetensors are read"),
    "truncated": (truncated, r"not a complete safetensors file"),
    "no weights": (without_weights, r"has no weights; .* is needed"),
    "no configuration": (without_config, r"has no config\.json"),
    "link outside": (linked_outside, r"links outside the checkpoint's folder"),
    "link loop": (link_loop, r"a link that leads nowhere"),
    "shard above": (index_naming("../canary.safetensors"), r"only plain names inside the folder"),
    "absolute shard": (index_naming("/etc/passwd"), r"only plain names inside the folder"),
    "shard with NUL": (index_naming("a\0.safetensors"), r"only plain names inside the folder"),
    "pickled shard": (index_naming("pytorch_model.bin"), r"only \.safetensors files are read"),
    "shard missing": (index_naming("b.safetensors"), r"'b\.safetensors', which is not there"),
    "index of a list": (index_of("[]"), r"holds a list; a JSON object is needed"),
    "index without map": (index_of("{}"), r"'weight_map' must map tensor names to files"),
    "empty index": (index_of('{"weight_map": {}}'), r"'weight_map' is empty"),
    "index of numbers": (
        index_of('{"weight_map": {"a": 1}}'),
        r"'weight_map' must map tensor names to files",
    ),
    "not JSON": (config_text("{"), r"not readable as JSON"),
    "NaN": (config_text('{"_class_name": "UNet2DConditionModel", "norm_eps": NaN}'), r"NaN is not a number"),
    "deep JSON": (config_text("[" * 100_000), r"not readable as JSON"),
    "no class": (config_text("{}"), r"describes none of UNet2DConditionModel"),
    "another class": (config_with(_class_name="FluxTransformer2DModel"), r"describes none of"),
    "huge width": (
        config_with(block_out_channels=[1 << 40, 64]),
        r"'block_out_channels' is .* numbers up to",
    ),
    "too deep": (config_with(layers_per_block=100_000), r"'layers_per_block' is 100000; numbers up to 512"),
    "long list": (config_with(block_out_channels=[32] * 1000), r"short lists are allowed"),
    "object": (config_with(act_fn={"a": 1}), r"'act_fn' is .* short texts"),
    "wrong type": (config_with(block_out_channels="wide"), r"refuses this configuration"),
    "negative": (config_with(norm_num_groups=-8), r"'norm_num_groups' is -8; numbers up to"),
    "unknown block": (config_with(down_block_types=["Nope", "Nope"]), r"refuses this configuration"),
    "other width": (config_with(block_out_channels=[16, 64]), r"has shape .* of another architecture"),
    "tensor missing": (
        weights_with(lambda t: t.pop("conv_out.bias")),
        r"1 of the \d+ tensors .* are missing",
    ),
    "tensor too many": (
        weights_with(lambda t: t.update(odd=torch.zeros(1))),
        r"has 1 tensors that .* has not",
    ),
    "NaN weights": (weights_with(not_a_number), r"'conv_in\.weight' has NaN or infinite values"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_folder_is_refused_with_one_sentence(damage: str, unet: Path) -> None:
    apply, message = DAMAGES[damage]
    apply(unet)
    with pytest.raises(BadInputError, match=message) as refused:
        checkpoints.load("custom", unet)
    assert "\n" not in str(refused.value)
    assert str(unet) in str(refused.value)


def test_a_hugging_face_cache_snapshot_may_link_to_its_own_blobs(unet: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--something"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, entry in enumerate(sorted(unet.iterdir())):
        blob = repository / "blobs" / str(number)
        shutil.copy(entry, blob)
        (snapshot / entry.name).symlink_to(os.path.relpath(blob, snapshot))
    checkpoints.load("custom", snapshot)


def test_a_folder_of_another_class_than_the_named_network_is_refused(unet_folder: Path) -> None:
    message = refusal(unet_folder, "pixart-alpha-512")
    assert "describes 'UNet2DConditionModel'; 'pixart-alpha-512' is a PixArtTransformer2DModel" in message


def test_a_folder_of_another_size_than_the_named_network_is_refused(unet_folder: Path) -> None:
    assert "'bk-sdm-tiny' has" in refusal(unet_folder, "bk-sdm-tiny")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "message"),
    [("w.ckpt", "is pickled"), ("w.bin", "is pickled"), ("w.onnx", "is not a .safetensors file")],
)
def test_a_file_that_is_not_safetensors_is_never_opened(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"")
    assert message in refusal(tmp_path / file, "bk-sdm-tiny")


def test_a_lone_file_cannot_say_what_a_custom_network_is(unet_folder: Path) -> None:
    assert "'custom' needs a folder with config.json" in refusal(next(unet_folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exporter": "other"}, "--exporter: 'other' is unknown; choose dynamo or legacy"),
        ({"opset": 5}, "--opset: the dynamo exporter does not write opset 5; choose one from 18 to"),
        ({"exporter": "legacy", "opset": 21}, "choose one from 14 to 17"),
        ({"dtype": "int8"}, "--dtype: 'int8' is unknown; choose fp32 or fp16"),
    ],
)
def test_an_unknown_export_option_is_refused_before_anything_is_built(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        checkpoints.build("taesd-decoder", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_custom_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'custom' takes its network from a checkpoint"):
        checkpoints.build("custom", out=tmp_path)


def test_a_refused_checkpoint_leaves_nothing_behind(unet: Path, tmp_path: Path) -> None:
    pickled(unet)
    with pytest.raises(NpusimError):
        checkpoints.build("custom", out=tmp_path / "out", weights=unet)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named(unet_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        checkpoints.build("taesd-decoder", out=tmp_path / "folder.onnx")
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoints.build("taesd-decoder", out=tmp_path / "file" / "x.onnx")
