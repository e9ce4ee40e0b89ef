"""Texts from local networks: captions by a vision-language model, prompts by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npusim.errors import BadInputError
from npusim.training.chain.record import Record
from npusim.training.chain.synth import Asked, Prompt

CAPTION_TOKENS = 60
PROMPT_TOKENS = 60
INSTRUCTION = "Describe this picture in one sentence."
"""What chat models are asked unless the user says otherwise. Ours."""


def _loaded(folder: Path, kinds: Sequence[Any], what: str) -> list[Any]:
    """What each of these classes reads from a local folder.

    Raises:
        BadInputError: one of them cannot.
    """
    if not (folder / "config.json").is_file():
        raise BadInputError(f"{folder}: holds no config.json; give the local folder of {what}")
    try:
        return [kind.from_pretrained(folder, local_files_only=True) for kind in kinds]
    except Exception as error:  # the library raises many kinds here; each means the folder cannot be used
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{folder}: {what} cannot be read from it ({first})") from error


@dataclass(frozen=True, slots=True)
class VisionLanguageCaptioner:
    """BLIP, BLIP-2, LLaVA: whatever AutoModelForImageTextToText reads. Greedy, so a caption is a function of the picture."""

    model: Any
    processor: Any
    name: str
    instruction: str | None = None

    @classmethod
    def of(cls, folder: Path, instruction: str | None = None) -> VisionLanguageCaptioner:
        """From a local folder. instruction: what chat models are asked; captioners such as BLIP need none."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        kinds = (AutoModelForImageTextToText, AutoProcessor)
        model, processor = _loaded(folder, kinds, "a vision-language model with its processor")
        if instruction is None and getattr(processor, "chat_template", None) is not None:
            instruction = INSTRUCTION
        asked = f", asked: {instruction}" if instruction else ""
        return cls(model.eval(), processor, f"{type(model).__name__} {folder.name}{asked}", instruction)

    def caption(self, shown: Sequence[Any], records: Sequence[Record]) -> list[str | None]:
        """One caption per picture."""
        return [self._caption(picture) for picture in shown]

    def _caption(self, picture: Any) -> str | None:
        asked = {"text": self._question()} if self.instruction else {}
        inputs = self.processor(images=picture, return_tensors="pt", **asked).to(self.model.device)
        with torch.no_grad():
            answer = self.model.generate(**inputs, max_new_tokens=CAPTION_TOKENS, do_sample=False)[0]
        said = answer[inputs["input_ids"].shape[1] :] if self.instruction else answer
        return str(self.processor.decode(said, skip_special_tokens=True)).strip() or None

    def _question(self) -> str:
        """The instruction as this model's chats write it."""
        if getattr(self.processor, "chat_template", None) is None:
            return str(self.instruction)
        content = [{"type": "image"}, {"type": "text", "text": self.instruction}]
        turns = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=True))


@dataclass(frozen=True, slots=True)
class LanguageModelPrompter:
    """A causal language model writes a sentence around the attributes; one that leaves an attribute out is no prompt."""

    model: Any
    tokenizer: Any
    name: str
    seed: int
    tries: int = 3

    @classmethod
    def of(cls, folder: Path, seed: int) -> LanguageModelPrompter:
        """From a local folder."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = _loaded(
            folder, (AutoModelForCausalLM, AutoTokenizer), "a causal language model with its tokenizer"
        )
        return cls(model.eval(), tokenizer, f"{type(model).__name__} {folder.name}", seed)

    def prompts(self, asked: Asked, numbers: Sequence[int]) -> list[Prompt]:
        """One prompt per number."""
        return [self._prompt(asked, number) for number in numbers]

    def _prompt(self, asked: Asked, number: int) -> Prompt:
        attributes, missing = asked.attributes(number), []
        for attempt in range(self.tries):
            text = self._written(
                asked.sentence(number), attributes, (self.seed * 1_000_003 + number) * 31 + attempt
            )
            missing = [value for value in attributes.values() if value.lower() not in text.lower()]
            if text and not missing:
                return Prompt(number, text, attributes)
        left_out = ", ".join(missing) or "everything"
        return Prompt(
            number, None, attributes, f"{self.name} left out {left_out} in each of {self.tries} sentences"
        )

    def _written(self, sentence: str, attributes: dict[str, str], seed: int) -> str:
        """The first line that the model writes."""
        facts = "; ".join(f"{name}: {value}" for name, value in attributes.items())
        task = (
            f"Describe a picture in one vivid sentence. Mention each of these words: {facts}.\n"
            f"Plain: {sentence}\nVivid:"
        )
        rows = self.tokenizer(self._as_chat(task), return_tensors="pt").to(self.model.device)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            answer = self.model.generate(
                input_ids=rows["input_ids"],
                attention_mask=rows["attention_mask"],
                max_new_tokens=PROMPT_TOKENS,
                do_sample=True,
                pad_token_id=self.tokenizer.eos_token_id,
            )[0]
        said = self.tokenizer.decode(answer[rows["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join((said.strip().splitlines() or [""])[0].split())

    def _as_chat(self, task: str) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            return task
        turns = [{"role": "user", "content": task}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
