"""IS, FID and CLIP score from local files: the formats users have, closed forms, and every bad file a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from npusim.errors import BadInputError
from npusim.training.metrics.inception import CLASSES, FEATURES, Inception, load_inception
from npusim.training.metrics.measures import NOT_COMPUTED, NOTHING, Measures, given


@pytest.fixture(scope="module")
def weights() -> Any:
    """FID's Inception with random weights, as pytorch-fid's file holds it."""
    torch.manual_seed(0)
    return Inception().state_dict()


@pytest.fixture(scope="module")
def saved(weights: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, path)
    return path


def test_the_network_has_the_size_and_the_work_of_inception_v3() -> None:
    """Parameters: torchvision's 23,834,568 without the auxiliary head, and 8 more classes. 5.71 GMAC: its published figure."""
    network, macs = Inception().eval(), 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 299, 299)).shape == (1, FEATURES)
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * (FEATURES + 1)
    assert (macs + FEATURES * 1000) / 1e9 == pytest.approx(5.71, abs=0.01)


def test_average_pools_leave_padding_out_and_the_last_block_pools_by_maximum() -> None:
    network = Inception().eval()
    ones = torch.ones(1, 2048, 8, 8)
    branch = network.Mixed_7c
    assert branch._branches[-1][0](ones).min() == 1
    assert branch._branches[-1][0](-ones).max() == -1
    drop = torch.zeros(1, 1, 8, 8)
    drop[..., 4, 4] = 9
    assert branch._branches[-1][0](drop).max() == 9
    assert network.Mixed_7b._branches[-1][0](drop).max() == 1
    assert network.Mixed_7b._branches[-1][0](ones).min() == 1


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_state_dict_is_read_back_and_identical_sets_are_at_no_distance(
    kind: str, saved: Path, weights: Any, tmp_path: Path
) -> None:
    path = saved
    if kind == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "inception.safetensors"
        save_file({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, path)
    network = load_inception(path)
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features, chances = network.read(pictures)
    assert features.shape == (3, FEATURES)
    assert chances.shape == (3, CLASSES)
    assert chances.sum(axis=1) == pytest.approx(1)
    figures = Measures(inception=network, reference=features).figures(pictures, None)
    assert figures["fid"] == pytest.approx(0, abs=1e-3)
    assert 1 <= figures["is"] <= 3
    assert figures["clip_score"] == NOT_COMPUTED


class _OneHot:
    """An Inception that is sure: picture n shows class n mod 5."""

    def read(self, pictures: Any) -> tuple[Any, Any]:
        count = len(pictures)
        return pictures.reshape(count, -1)[:, :4].double().numpy(), np.eye(5)[np.arange(count) % 5]


def test_the_score_of_uniform_one_hot_classes_is_their_number() -> None:
    pictures = torch.rand(100, 3, 4, 4)
    assert Measures(inception=_OneHot()).figures(pictures, None)["is"] == pytest.approx(5)


def test_the_distance_to_a_shifted_set_is_the_square_of_the_shift() -> None:
    pictures = torch.rand(500, 3, 4, 4)
    measures = Measures(inception=_OneHot()).against(pictures)
    assert measures.figures(pictures + 2, None)["fid"] == pytest.approx(4 * 2**2, abs=1e-3)


def test_nothing_given_is_nothing_computed_and_says_so() -> None:
    figures = NOTHING.figures(torch.zeros(2, 3, 8, 8), ["a", "b"])
    assert figures == {"is": NOT_COMPUTED, "fid": NOT_COMPUTED, "clip_score": NOT_COMPUTED}
    assert (
        NOTHING.missing()
        == "IS and FID: not computed (give --inception); CLIP score: not computed (give --clip)"
    )


def test_another_inception_is_refused_with_the_first_difference(weights: Any, tmp_path: Path) -> None:
    path = tmp_path / "torchvision.pth"
    torch.save({**weights, "fc.weight": torch.zeros(1000, FEATURES)}, path)
    with pytest.raises(
        BadInputError, match=r"fc\.weight has shape \(1000, 2048\), expected \(1008, 2048\); give"
    ):
        load_inception(path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(
        BadInputError, match=r"Conv2d_1a_3x3\.conv\.weight is missing, expected \(32, 3, 3, 3\)"
    ):
        load_inception(path)


def _dangerous(path: Path) -> None:
    torch.save({"x": Path("/")}, path)  # not a tensor: would have to be unpickled


@pytest.mark.parametrize(
    "write",
    [lambda p: None, lambda p: p.write_bytes(b"no"), _dangerous, lambda p: torch.save([1], p)],
    ids=["missing", "text", "pickled object", "list"],
)
def test_a_file_that_is_no_state_dict_is_a_sentence(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.pth")
    with pytest.raises(
        BadInputError, match=r"--inception .*x\.pth: (cannot be read as|holds no) .*state dict"
    ):
        given(tmp_path / "x.pth", None)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel with random weights and a tokenizer of the small world, saved as users have them."""
    from transformers import CLIPConfig, CLIPModel

    from npusim.training.data.world import world
    from npusim.training.text import build_tokenizer

    tokenizer = build_tokenizer(world("toy-small").words(), 10)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    words = {**size, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 10}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=words, vision_config={**size, "image_size": 24, "patch_size": 8}, projection_dim=12
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_clip_score_is_the_cosine_that_the_model_itself_reports(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    captions = ["small red circle top left sand", "large blue cross"]
    pictures = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scorer = given(None, clip_folder).clip
    found = scorer.score(pictures, captions)
    model = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    words = CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True)(
        captions, padding="max_length", max_length=10, return_tensors="pt"
    )
    bytes_ = ((pictures + 1) * 127.5).round() / 255  # as many pixels as the model takes: nothing is resized
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        answer = model(pixel_values=(bytes_ - mean) / deviation, **words)
    expected = answer.logits_per_image.diagonal() / model.logit_scale.exp()
    assert found == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert NOTHING.figures(pictures, captions)["clip_score"] == NOT_COMPUTED
    assert Measures(clip=scorer).figures(pictures, captions)["clip_score"] == pytest.approx(
        found.mean(), abs=1e-4
    )


def test_pictures_of_another_size_are_resized_as_pillow_does(clip_folder: Path) -> None:
    scorer = given(None, clip_folder).clip
    plain = torch.full((1, 3, 24, 24), 0.5)
    large = torch.full((1, 3, 48, 48), 0.5)
    assert scorer.score(large, ["red"]) == pytest.approx(scorer.score(plain, ["red"]))


def test_a_clip_folder_that_is_none_is_a_sentence(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"--clip .*none: no such folder"):
        given(None, tmp_path / "none")
    with pytest.raises(BadInputError, match=r"holds no config\.json"):
        given(None, tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(BadInputError, match=r"holds neither tokenizer\.json nor vocab\.json; save the whole"):
        given(None, tmp_path)


def _drawn(folder: Path, count: int, side: int = 24) -> Path:
    """A folder of noise with captions."""
    import json

    from PIL import Image

    rng = np.random.default_rng(count)
    rows = []
    folder.mkdir()
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": "small red circle"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _evaluate(*words: object) -> Any:
    from typer.testing import CliRunner

    from npusim.training.cli import app

    return CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=False)


def test_a_folder_is_measured_as_its_pictures_are_and_what_is_missing_is_said(
    clip_folder: Path, tmp_path: Path
) -> None:
    import json

    from PIL import Image

    folder = _drawn(tmp_path / "drawn", 35)  # more than one batch
    answer = _evaluate("--pictures", folder, "--clip", clip_folder)
    assert answer.exit_code == 0
    found = json.loads(answer.stdout)
    pictures = torch.stack(
        [
            torch.from_numpy(np.asarray(Image.open(folder / f"{i}.png"), np.float32)).permute(2, 0, 1) / 127.5
            - 1
            for i in range(35)
        ]
    )
    expected = given(None, clip_folder).figures(pictures, ["small red circle"] * 35)
    assert found == {"pictures": 35, **expected}
    assert "IS and FID: not computed (give --inception)" in answer.stderr


def test_a_folder_is_at_no_distance_from_itself(tmp_path: Path) -> None:
    from npusim.training.metrics.folder import measure_folder

    ours, theirs = _drawn(tmp_path / "ours", 40), _drawn(tmp_path / "theirs", 30, 16)
    (theirs / "metadata.jsonl").unlink()
    measures = Measures(inception=_OneHot(), clip=None)
    assert measure_folder(ours, ours, measures, print)["fid"] == pytest.approx(0, abs=1e-6)
    apart = measure_folder(ours, theirs, measures, print)
    assert apart["fid"] > 0
    assert apart["is"] == pytest.approx(4, abs=0.01)  # ten parts of four pictures of four classes
    assert measure_folder(ours, None, measures, print)["fid"] == NOT_COMPUTED


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (
            lambda f: (f / "3.png").write_bytes(b"no"),
            r"3\.png: 3\.png is not a picture .*; remove it, or draw",
        ),
        (lambda f: (f / "3.png").unlink(), r"3\.png does not exist; remove it, or draw it again"),
        (
            lambda f: (f / "metadata.jsonl").write_text("{}"),
            r"metadata\.jsonl: each line must be JSON with file_name",
        ),
        (lambda f: (f / "metadata.jsonl").write_text(""), r"metadata\.jsonl: holds no pictures"),
        (lambda f: [path.unlink() for path in f.iterdir()], r"drawn: holds no pictures; give one with"),
        (lambda f: f.rename(f.with_name("gone")), r"drawn: no such folder"),
    ],
    ids=["damaged", "missing", "no keys", "empty listing", "empty folder", "no folder"],
)
def test_a_folder_that_cannot_be_measured_is_a_sentence(prepare: Any, sentence: str, tmp_path: Path) -> None:
    from npusim.training.metrics.folder import measure_folder

    folder = _drawn(tmp_path / "drawn", 5)
    prepare(folder)
    with pytest.raises(BadInputError, match=sentence):
        measure_folder(folder, None, Measures(inception=_OneHot()), print)


def test_measuring_with_nothing_and_comparing_nothing_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match="--pictures: nothing to measure with; give --inception FILE, --clip"
    ):
        _evaluate("--pictures", tmp_path)
    with pytest.raises(BadInputError, match="--reference: goes with --pictures"):
        _evaluate("--reference", tmp_path)
