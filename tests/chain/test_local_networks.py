"""Each step's second implementation on tiny checkpoints of the real classes, with random weights, made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from npusim.errors import BadInputError  # noqa: E402
from npusim.training.chain import choose  # noqa: E402
from npusim.training.chain.crop import Crop  # noqa: E402
from npusim.training.chain.dedup import Likeness, dedup  # noqa: E402
from npusim.training.chain.filter import AgreementFilter, SizeFilter  # noqa: E402
from npusim.training.chain.make import make_from_folder  # noqa: E402
from npusim.training.chain.quota import Quota  # noqa: E402
from npusim.training.chain.recaption import Recaption  # noqa: E402
from npusim.training.chain.step import Item, run_step  # noqa: E402
from npusim.training.chain.synth import PlainPrompter, QuotaAsked, WorldAsked, synthesise  # noqa: E402
from npusim.training.chain.variant import Variant  # noqa: E402
from npusim.training.config import preset, shortened  # noqa: E402
from npusim.training.data.world import world  # noqa: E402
from npusim.training.run import Run, open_run  # noqa: E402
from npusim.training.session import Session  # noqa: E402
from npusim.training.stages import train_classifier  # noqa: E402
from npusim.training.text import build_tokenizer  # noqa: E402

from .conftest import QUIET, scene, write_folder  # noqa: E402

Begun = Callable[..., Variant]
pytestmark = pytest.mark.slow
WORDS = ("a", "an", "photo", "drawing", "of", "cat", "dog", "scene", "describe", "picture")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-clip"
    tokenizer = build_tokenizer(WORDS, 16)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 24,
    }
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **small, **ends)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-blip"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        **small,
        "encoder_hidden_size": 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 80,
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that sees: its processor has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    vocabulary = {word: i for i, word in enumerate([*specials.values(), "<image>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<image>"], **specials
    )
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    text = LlamaConfig(vocab_size=len(vocabulary), num_key_value_heads=4, **small, **ends)
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llava"
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_token_id=4)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for turn in messages %}{% for part in turn['content'] %}"
        "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
    )
    options = {
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    LlavaProcessor(pictures, tokenizer, chat_template=template, **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-gpt"
    tokenizer = build_tokenizer(WORDS, 64)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline of a few thousand weights."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = build_tokenizer(WORDS, 16)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=32,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of toy-small whose classifier had few steps."""
    small = shortened(preset("toy-small"), 3)
    made = Run(preset=small, out=tmp_path_factory.mktemp("runs") / "toy-small")
    open_run(made)
    assert train_classifier(Session(run=made))
    return made.out


def test_clip_scores_are_cosines_and_choose_the_crop(clip: Path, begun: Begun, tmp_path: Path) -> None:
    reader = choose.agreement(clip)
    assert reader is not None
    shown = [scene(i) for i in range(5)]
    values = reader.agree(shown, ["a cat"] * 5)
    assert (np.abs(values) <= 1).all()
    one_by_one = [float(reader.agree([picture], ["a cat"])[0]) for picture in shown]
    assert values == pytest.approx(one_by_one, abs=1e-5)
    parent = begun(4, width=120, height=60)
    made = run_step(Crop(choose.scorer("clip", clip)), parent, tmp_path / "L-pp", QUIET)
    for record in made.kept():
        scores = record.details["scores"]
        assert isinstance(scores, list)
        assert record.details["place"] == ("centre", "start", "end")[int(np.argmax(scores))]
    assert made.card.settings["scorer"] == "CLIP tiny-clip"


def test_clip_filters_and_judges_by_agreement(clip: Path, begun: Begun, tmp_path: Path) -> None:
    parent = begun(6)
    reader = choose.agreement(clip)
    assert reader is not None
    shown = [Image.open(parent.folder / r.file).convert("RGB") for r in parent.kept()]
    values = reader.agree(shown, [r.caption for r in parent.kept()])
    least = float(np.median(values))
    for step in (
        AgreementFilter(SizeFilter(min_side=0), reader, least),
        choose.judge("clip", clip, least=least, sure=0, correct=True),
    ):
        made = run_step(step, parent, tmp_path / f"{step.name} out", QUIET)
        assert [r.cause == "caption disagrees" for r in made.records()] == (values < least).tolist()


def test_clip_confirms_near_copies(clip: Path, tmp_path: Path) -> None:
    shown = {"a.png": scene(1), "copy.png": scene(1).resize((48, 40)), "b.png": scene(2)}
    parent = make_from_folder(write_folder(tmp_path / "in", shown), tmp_path / "L-orig", QUIET)
    for cosine, kept in ((0.9, 2), (1.0, 3)):
        likeness = Likeness(embedder=choose.embedder("clip", clip), cosine=cosine)
        assert dedup(parent, tmp_path / f"out {cosine}", likeness, QUIET).finished.kept == kept


def test_blip_writes_captions_from_pictures_alone(blip: Path, begun: Begun, tmp_path: Path) -> None:
    parent = begun(3)
    step = Recaption(choose.captioner("model", blip, None, None))
    made = run_step(step, parent, tmp_path / "L-pps", QUIET)
    again = run_step(step, parent, tmp_path / "again", QUIET)
    assert [r.caption for r in made.records()] == [r.caption for r in again.records()]
    assert {r.caption_source for r in made.kept()} == {"BlipForConditionalGeneration tiny-blip"}
    assert set(" ".join(r.caption for r in made.kept()).split()) <= {*WORDS, "."}


def test_llava_is_asked_and_its_answer_is_the_caption(llava: Path) -> None:
    shown = [Image.new("RGB", (50, 40), colour) for colour in ((200, 10, 10), (0, 10, 210))]
    plain = choose.captioner("model", llava, None, None)
    assert plain.name.endswith("asked: Describe this picture in one sentence.")
    asked = choose.captioner("model", llava, None, "describe a picture")
    red, blue = asked.caption(shown, [])
    assert red
    assert blue
    assert set(f"{red} {blue}".split()) <= set(WORDS)
    assert red != blue
    assert "describe a picture" not in red


def quota(count: int) -> QuotaAsked:
    shares = {"style": {"photo": 1.0, "drawing": 1.0}, "subject": {"cat": 1.0, "dog": 1.0}}
    return QuotaAsked.of(Quota(template="a {style} of a {subject}", attributes=shares), 0, count)


def test_a_prompt_that_leaves_an_attribute_out_is_set_aside(gpt: Path) -> None:
    prompter = choose.prompter("model", gpt, 0)
    first, again = (prompter.prompts(quota(2), range(2)) for _ in range(2))
    assert first == again
    for prompt in first:
        if prompt.text is None:
            assert "left out" in prompt.failure
        else:
            assert all(value in prompt.text for value in prompt.attributes.values())


def test_a_prompt_with_every_attribute_is_taken(gpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompter: Any = choose.prompter("model", gpt, 0)
    asked = quota(2)
    wanted = " ".join(asked.attributes(1).values())
    rows = prompter.tokenizer(wanted, add_special_tokens=False).input_ids
    monkeypatch.setattr(
        type(prompter.model),
        "generate",
        lambda self, input_ids, **_: torch.cat([input_ids, torch.tensor([rows])], 1),
    )
    (prompt,) = prompter.prompts(asked, [1])
    assert prompt.text == wanted


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' Euler scheduler
def test_sdxl_draws_each_prompt_from_its_number(sdxl: Path, tmp_path: Path) -> None:
    options = {"stage": "", "steps": 2, "size": 32, "seed": 4}
    asked = quota(3)
    generator = choose.generator("pipeline", sdxl, asked, **options)  # type: ignore[arg-type]
    made = synthesise(asked, PlainPrompter(), generator, 3, tmp_path / "synt", QUIET)
    records = list(made.kept())
    assert made.card.settings["images"] == "StableDiffusionXLPipeline tiny-sdxl"
    assert {(r.width, r.height) for r in records} == {(32, 32)}
    (alone,) = generator.draw(PlainPrompter().prompts(asked, [2]))
    with Image.open(made.folder / records[2].file) as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(alone))


def test_the_classifier_crops_captions_and_judges(run: Path, tmp_path: Path) -> None:
    asked = WorldAsked.of(world("toy-small"), 0, 12)
    drawn = choose.generator("render", None, asked, stage="", steps=None, size=None, seed=0)
    parent = synthesise(asked, PlainPrompter(), drawn, 12, tmp_path / "synt", QUIET)
    reader: Any = choose.captioner("classifier", run, None, None)
    shown = [Image.open(parent.folder / r.file).convert("RGB") for r in parent.kept()]
    seen, chances = reader.read(shown)
    assert np.exp(reader.score(shown, [])) == pytest.approx(np.exp(np.log(chances).mean(axis=1)))
    made = run_step(Recaption(reader), parent, tmp_path / "L-pps", QUIET)
    values = [[a.values[i] for a, i in zip(reader.world.attributes, row, strict=True)] for row in seen]
    assert [r.caption for r in made.kept()] == [" ".join(row) for row in values]
    assert choose.scorer("classifier", run).name == "attribute classifier of toy-small (seed 0)"
    least = chances.min(axis=1)
    for correct in (True, False):
        judge = choose.judge("classifier", run, least=0, sure=float(np.median(least)), correct=correct)
        items = [
            Item(r, parent.folder / r.file, picture) for r, picture in zip(parent.kept(), shown, strict=True)
        ]
        outcomes = judge.apply(items)
        assert [o.cause == "artefact" for o in outcomes] == (least < np.median(least)).tolist()
        for outcome, row, item in zip(outcomes, values, items, strict=True):
            same = row == list(item.record.attributes.values())
            if outcome.cause != "artefact":
                assert outcome.cause == (None if same or correct else "not as asked")
                assert outcome.caption == (" ".join(row) if correct and not same else None)
    assert "automatic judge" in str(judge.settings()["by"])


@pytest.mark.parametrize("kind", ["embedder", "scorer", "captioner", "prompter", "generator"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Nonsense"}))
    calls: dict[str, Callable[[], Any]] = {
        "embedder": lambda: choose.embedder("clip", tmp_path),
        "scorer": lambda: choose.scorer("clip", tmp_path),
        "captioner": lambda: choose.captioner("model", tmp_path, None, None),
        "prompter": lambda: choose.prompter("model", tmp_path, 0),
        "generator": lambda: choose.generator(
            "pipeline", tmp_path, quota(1), stage="", steps=None, size=None, seed=0
        ),
    }
    with pytest.raises(BadInputError, match=str(tmp_path)):
        calls[kind]()
