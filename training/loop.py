"""One training loop for every stage: accelerate, EMA, atomic checkpoints, exact resume, a time budget."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from npusim.errors import BadInputError
from npusim.training import checkpoints
from npusim.training.config import Optimiser, Training, as_json, digest
from npusim.training.curve import Curve
from npusim.training.draw import Draw


class Stage(Protocol):
    """What the loop needs to know about a stage."""

    name: str
    training: Training
    module: Any
    """What is trained."""
    companion: Any
    """A network that follows the trained one and must be in checkpoints (LCM's EMA target), or None."""
    frozen: tuple[Any, ...]
    """Networks that the losses use and nothing trains; they are moved to the device with the trained one."""

    def losses(self, module: Any, draw: Draw) -> Mapping[str, Any]:
        """Forward one micro-batch. Returns scalar tensors; "loss" is minimised, all are logged."""

    def after_update(self, module: Any) -> None:
        """Called after each optimiser step."""


@dataclass(slots=True)
class Budget:
    """Wall-clock minutes that remain; None is without end. `started` lets several stages share one budget."""

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        """Whether the time is over."""
        return self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call of `train` ended. `seconds_per_step` leaves the first steps of a call out."""

    finished: bool
    step: int
    seconds_per_step: float
    seconds: float


def silent(text: str) -> None:
    """Report nowhere."""


def learning_rate(optimiser: Optimiser, step: int, steps: int) -> float:
    """The rate of this step: linear warm-up, then constant or a half cosine to zero."""
    if step < optimiser.warmup_steps:
        return optimiser.lr * (step + 1) / optimiser.warmup_steps
    if optimiser.shape == "constant":
        return optimiser.lr
    done = (step - optimiser.warmup_steps) / max(1, steps - optimiser.warmup_steps)
    return optimiser.lr * 0.5 * (1 + math.cos(math.pi * done))


def accelerator(training: Training) -> Any:
    """accelerate's Accelerator for this stage.

    Raises:
        BadInputError: the precision is not available on this device.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # stages may differ in precision; the process group itself stays
    acc = Accelerator(mixed_precision=training.precision, gradient_accumulation_steps=training.accumulation)
    if training.precision == "fp16" and acc.device.type == "cpu":
        raise BadInputError("--precision fp16: needs a GPU, found a CPU only; use --precision no or bf16")
    return acc


class _State:
    """Everything that a step changes: module, optimiser, EMA, companion, gradient scaler."""

    def __init__(self, stage: Stage, acc: Any) -> None:
        from diffusers.training_utils import EMAModel

        self.stage, self.acc = stage, acc
        for network in (stage.module, stage.companion, *stage.frozen):
            if network is not None:
                network.to(acc.device)
        self.parameters = [p for p in stage.module.parameters() if p.requires_grad]
        settings = stage.training.optimiser
        bare = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.module, self.optimiser = acc.prepare(stage.module, bare)
        decay = stage.training.ema
        self.ema = EMAModel(self.parameters, decay=decay, foreach=True) if decay is not None else None

    def tensors(self) -> dict[str, Any]:
        """All tensors by a flat name."""
        out = {f"module/{name}": value for name, value in self.stage.module.state_dict().items()}
        for number, entry in self.optimiser.state_dict()["state"].items():
            out |= {f"optimiser/{number}/{name}": value for name, value in entry.items()}
        if self.ema is not None:
            out |= {f"ema/{index}": value for index, value in enumerate(self.ema.shadow_params)}
        if self.stage.companion is not None:
            out |= {f"companion/{name}": value for name, value in self.stage.companion.state_dict().items()}
        return {name: value.clone() for name, value in out.items()}

    def scaler(self) -> dict[str, Any]:
        """The fp16 gradient scaler's numbers, empty without one."""
        return dict(self.acc.scaler.state_dict()) if self.acc.scaler is not None else {}

    def load(self, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `scaler` gave."""
        self.stage.module.load_state_dict(_under(tensors, "module/"))
        entries: dict[int, dict[str, Any]] = {}
        for name, value in _under(tensors, "optimiser/").items():
            number, _, key = name.partition("/")
            entries.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": entries, "param_groups": groups})
        if self.ema is not None:
            for index, shadow in enumerate(self.ema.shadow_params):
                shadow.copy_(tensors[f"ema/{index}"])
            self.ema.optimization_step = facts["step"]
        if self.stage.companion is not None:
            self.stage.companion.load_state_dict(_under(tensors, "companion/"))
        if self.acc.scaler is not None and facts["scaler"]:
            self.acc.scaler.load_state_dict(facts["scaler"])


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _update(state: _State, step: int, seed: int) -> dict[str, float]:
    """One optimiser step over all micro-batches. Returns the mean of each logged value."""
    training, acc = state.stage.training, state.acc
    rate = learning_rate(training.optimiser, step, training.steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    sums: dict[str, float] = {}
    for micro in range(training.accumulation):
        with acc.accumulate(state.module):
            with acc.autocast():
                parts = state.stage.losses(
                    state.module, Draw(seed, state.stage.name, step, micro, acc.process_index)
                )
            acc.backward(parts["loss"])
            if acc.sync_gradients:
                acc.clip_grad_norm_(state.parameters, training.optimiser.clip)
            state.optimiser.step()
            state.optimiser.zero_grad()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / training.accumulation
    if state.ema is not None:
        state.ema.step(state.parameters)
    state.stage.after_update(state.stage.module)
    if not math.isfinite(sums["loss"]):
        raise BadInputError(
            f"{state.stage.name}: the loss is {sums['loss']} at step {step}; lower the learning rate"
        )
    return sums | {"lr": rate}


def _fingerprint(stage: Stage, seed: int) -> str:
    """What a checkpoint must agree with to be resumed: the stage's settings, the seed, the threads.

    Checkpoint and log intervals may differ. Threads count because sums over a different split round
    differently.
    """
    settings = as_json(stage.training)
    for free in ("checkpoint_every", "log_every"):
        settings.pop(free)
    return f"{stage.name} {digest(settings)} seed {seed} threads {torch.get_num_threads()}"


def _resume(state: _State, path: Path, seed: int) -> tuple[int, float]:
    """Load the checkpoint if there is one. Returns the step to go on from, and the seconds that a step took."""
    if not path.is_file():
        return 0, 0.0
    tensors, facts = checkpoints.read_tensors(path)
    wanted = _fingerprint(state.stage, seed)
    if facts.get("fingerprint") != wanted:
        raise BadInputError(
            f"{path}: was written with other settings ({facts.get('fingerprint')}), this run is ({wanted}); "
            "use the same preset, seed and --threads to resume, or --no-resume to start this stage afresh"
        )
    try:
        state.load(tensors, facts)
    except (KeyError, RuntimeError, ValueError) as error:
        raise BadInputError(
            f"{path}: does not fit this stage's networks ({error}); use --no-resume"
        ) from error
    return int(facts["step"]), float(facts.get("seconds_per_step", 0.0))


@contextmanager
def _progress(stage: Stage, first: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(stage.name, total=stage.training.steps, completed=first)
        yield lambda step: bar.update(task, completed=step)


class _Record:
    """A stage's files: checkpoint and curve. Only the main process writes them."""

    def __init__(self, state: _State, folder: Path, seed: int, resume: bool) -> None:
        self._state, self._seed = state, seed
        self._path = folder / "checkpoint.safetensors"
        self.first, self._pace = _resume(state, self._path, seed) if resume else (0, 0.0)
        self._curve = Curve(folder, self.first) if state.acc.is_main_process else None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step if it is one of those that are logged."""
        training = self._state.stage.training
        if self._curve is not None and (step % training.log_every == 0 or step + 1 == training.steps):
            self._curve.add(step, values)

    def pace(self, times: list[float]) -> float:
        """Seconds per step of this call, or of the one before where this call took too few steps to tell."""
        return steady(times) or self._pace

    def save(self, step: int, times: list[float]) -> None:
        """Write a checkpoint from which step `step` comes next."""
        if self._curve is not None:
            facts = {"fingerprint": _fingerprint(self._state.stage, self._seed), "step": step}
            facts["seconds_per_step"] = self.pace(times)
            facts["scaler"] = self._state.scaler()
            checkpoints.write_tensors(self._path, self._state.tensors(), facts)

    def close(self) -> None:
        """Flush the curve."""
        if self._curve is not None:
            self._curve.close()


def _time_is_up(budget: Budget | None, acc: Any) -> bool:
    """Whether to stop; the main process decides for all, so that none waits for another."""
    if budget is None or acc.num_processes == 1:
        return budget is not None and budget.spent()
    from accelerate.utils import broadcast_object_list

    return bool(broadcast_object_list([budget.spent()])[0])


def train(
    stage: Stage,
    folder: Path,
    *,
    seed: int,
    budget: Budget | None = None,
    resume: bool = True,
    say: Callable[[str], None] = silent,
) -> Outcome:
    """Train a stage to its last step or until the budget is spent; leave a checkpoint either way.

    With EMA, the averaged weights are in `stage.module` when the last step is done.

    Args:
        stage: what to train.
        folder: holds checkpoint.safetensors, losses.csv and tensorboard/.
        seed: with (stage, step) it determines all data and noise.
        budget: stop after this much time.
        resume: go on from the checkpoint, if there is one.
        say: where to report one line now and then.

    Raises:
        BadInputError: a checkpoint that cannot be resumed, or a loss that is not finite.
        OutputError: the disk refused a checkpoint.
    """
    state = _State(stage, accelerator(stage.training))
    record = _Record(state, folder, seed, resume)
    clock, times, step = time.monotonic(), [], record.first
    stage.module.train()
    with _progress(stage, step) as advance:
        while step < stage.training.steps and not _time_is_up(budget, state.acc):
            began = time.monotonic()
            values = _update(state, step, seed)
            times.append(time.monotonic() - began)
            record.add(step, values)
            step += 1
            advance(step)
            if step % stage.training.checkpoint_every == 0 and step < stage.training.steps:
                record.save(step, times)
                say(_line(stage, step, values, times))
    record.save(step, times)
    record.close()
    finished = step >= stage.training.steps
    if finished and state.ema is not None:
        state.ema.copy_to(state.parameters)
    stage.module.eval()
    seconds = time.monotonic() - clock
    return Outcome(finished=finished, step=step, seconds_per_step=record.pace(times), seconds=seconds)


def rehearse(stage: Stage, steps: int, seed: int = 0) -> list[float]:
    """Take a few real steps without files: no checkpoint, no log. Returns the seconds of each."""
    state = _State(stage, accelerator(stage.training))
    stage.module.train()
    times = []
    for step in range(steps):
        began = time.monotonic()
        _update(state, step, seed)
        times.append(time.monotonic() - began)
    return times


def steady(times: list[float], skip: int = 3) -> float:
    """The median time of a step, leaving out the first few, which allocate; 0 without enough steps."""
    kept = sorted(times[skip:])
    return kept[len(kept) // 2] if kept else 0.0


def _line(stage: Stage, step: int, values: Mapping[str, float], times: list[float]) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "lr")
    return f"{stage.name} {step}/{stage.training.steps}: {parts} ({steady(times):.3f} s per step)"
