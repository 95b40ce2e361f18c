"""The step: micro-batches, processes and cached features do not change the update."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from trainer import step
from trainer.data.formats.reasonseg import read_split
from trainer.data.micro_batches import MicroBatches
from trainer.data.samples import SampleSet, Visit, collate
from trainer.model.build import build, read_tokenizer
from trainer.model.tokenizer import TooLong
from trainer.reporter import Reporter
from trainer.run.run import Run
from trainer.step import NotFinite, make_optimizer, training_step

QUIET = Reporter(lambda text: None, lambda what, done, total: None)
CPU = torch.device("cpu")


def updated(micro: int) -> dict[str, torch.Tensor]:
    plan = tiny_plan(micro_batch=micro, effective_batch=4)
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    batches = [
        collate([samples[n] for n in range(start, start + micro)], tokenizer)
        for start in range(0, 4, micro)
    ]
    model = build(plan, tokenizer, CPU)
    found: dict[str, torch.Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            found.update(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            )

    optimizer = Keep([p for p in model.parameters() if p.requires_grad], lr=0.0)
    training_step(model, batches, optimizer, plan, Accelerator(cpu=True))
    return found


def test_accumulation_equals_one_batch() -> None:
    whole, parts = updated(4), updated(1)
    assert whole.keys() == parts.keys()
    total = torch.cat([value.flatten() for value in whole.values()]).norm()
    for name, value in whole.items():
        # A key's bias has no effect on a softmax: its gradient is rounding, measured in the whole.
        allowed = 1e-5 * value.norm() + 1e-7 * total
        assert (value - parts[name]).norm() <= allowed, name


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    plan = tiny_plan()
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    batch = collate([samples[0], samples[1]], tokenizer)
    model = build(plan, tokenizer, CPU)
    with torch.no_grad():
        model.text_hidden_fcs[2].bias.fill_(float("nan"))
    before = model.text_hidden_fcs[0].weight.clone()
    with pytest.raises(NotFinite, match=batch.names[0]):
        training_step(model, [batch], make_optimizer(model, plan), plan, Accelerator(cpu=True))
    assert torch.equal(model.text_hidden_fcs[0].weight, before)


def test_sampler_gives_the_same_effective_batches_however_they_are_cut() -> None:
    def steps(micro: int, processes: int) -> list[list[Visit]]:
        plan = tiny_plan(effective_batch=12, micro_batch=micro, processes=processes,
                         accumulation=12 // micro // processes)  # fmt: skip
        samplers = [MicroBatches(Odd(31), plan, rank) for rank in range(processes)]
        ranks = [map(one.rows, one) for one in samplers]
        flat = [list(itertools.chain(*micros)) for micros in zip(*ranks, strict=True)]
        size = plan.accumulation
        return [
            sorted(itertools.chain(*flat[start : start + size]))
            for start in range(0, len(flat), size)
        ]

    assert steps(12, 1) == steps(3, 1) == steps(3, 2) == steps(1, 4)
    assert {visit.picture for step in steps(12, 1) for visit in step} == set(range(31))


class Odd:
    """Pictures of different length, each with so many questions."""

    def __init__(self, pictures: int, questions: Callable[[int], int] = lambda picture: 1) -> None:
        self.epoch_questions = self.pictures = pictures
        self.drawn = False
        self.given = questions

    def __len__(self) -> int:
        return self.pictures

    def questions(self, lap: int, picture: int) -> int:
        return self.given(picture)

    def length(self, visit: Visit) -> int:
        return (visit.picture * 7919 + visit.lap) % 101


def test_micro_batches_hold_samples_of_similar_length() -> None:
    plan = tiny_plan(effective_batch=12, micro_batch=3, accumulation=4)

    class Alike(Odd):
        def length(self, visit: Visit) -> int:
            return 0

    def padding(samples: Odd) -> int:
        """Padded tokens of an epoch, by the true lengths."""
        sampler = MicroBatches(samples, plan)
        micros = [[Odd(36).length(visit) for visit in sampler.rows(one)] for one in sampler]
        return sum(len(m) * max(m) - sum(m) for m in micros)

    grouped, mixed = padding(Odd(36)), padding(Alike(36))
    assert 0 < grouped < 0.4 * mixed


@pytest.mark.parametrize(("processes", "micro"), [(2, 1), (2, 3), (4, 1), (4, 2), (3, 2)])
def test_processes_get_about_as_many_tokens_each(processes: int, micro: int) -> None:
    """Of the slowest one's lead over the mean, dealing in turn has at least twice as much."""
    samples, batch = Odd(240), 24
    plan = tiny_plan(effective_batch=batch, micro_batch=micro, processes=processes,
                     accumulation=batch // micro // processes)  # fmt: skip
    samplers = [MicroBatches(samples, plan, rank) for rank in range(processes)]
    ranks = [map(sampler.rows, sampler) for sampler in samplers]
    now, before, passes = [], [], plan.accumulation
    for rows in samplers[0].of_epoch(0):
        shares = [[[samples.length(visit) for visit in next(rank)] for _ in range(passes)]
                  for rank in ranks]  # fmt: skip
        lengths = sorted(map(samples.length, rows))
        assert lengths == sorted(itertools.chain(*itertools.chain(*shares)))
        parts = [lengths[start : start + micro] for start in range(0, batch, micro)]
        now.append(lead(shares))
        before.append(lead([parts[rank::processes] for rank in range(processes)]))
        # The rows that decide memory are spread too: each process has one of the longest parts.
        longest = [max(map(max, share)) for share in shares]
        assert sorted(longest) == [max(part) for part in parts[-processes:]]
    assert sum(now) < 0.5 * sum(before), (sum(now) / len(now), sum(before) / len(before))


def lead(shares: list[list[list[int]]]) -> float:
    """By how much of the mean the slowest process has more padded tokens than the mean."""
    tokens = [sum(len(part) * max(part) for part in share) for share in shares]
    return max(tokens) / (sum(tokens) / len(tokens)) - 1


def test_length_is_that_of_the_sample() -> None:
    plan = tiny_plan()
    samples = SampleSet(read_split(PHOTOS, "train"), plan, read_tokenizer(plan), {}, training=True)
    assert all(
        samples.length(Visit(3, n, 1)) == len(samples[3, n].encoded.input_ids) for n in range(4)
    )


def test_too_long_a_sample_names_its_file() -> None:
    plan = tiny_plan(tokens={"max_text_tokens": 32})
    samples = SampleSet(read_split(PHOTOS, "train"), plan, read_tokenizer(plan), {}, training=True)
    with pytest.raises(TooLong, match=r"\.json.*allows 32"):
        samples[0]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_cached_run_equals_online_run(
    cache: Path, tmp_path: Path, photos: Path, quantization: str
) -> None:
    losses = []
    for cached in ([], ["mask", "vision"]):
        plan = tiny_plan(cached_encoders=cached, quantization=quantization, effective_batch=4)
        folder = tmp_path / f"run{len(cached)}"
        folder.mkdir()
        items = read_split(photos, "train", 4)
        run = Run(plan, items, items[:1], folder, cache, QUIET)
        run.train()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
        assert (folder / "best" / "trained.safetensors").is_file()
        assert Plan.read(folder / "best" / "plan.json") == plan
    # Features are stored in the plan's dtype, fp32 here: nothing is lost on the way.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision a process: forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_trains_on_the_cpu(tmp_path: Path, photos: Path) -> None:
    plan = tiny_plan(
        dtype="bf16",
        quantization="nf4",
        cached_encoders=["mask", "vision"],
        schedule={"learning_rate": 2e-3, "warmup_steps": 0, "epochs": 6, "shape": "constant"},
    )
    items = read_split(photos, "train", 2)
    run = Run(plan, items, items[:1], tmp_path, tmp_path / "cache", QUIET)
    # The frozen weights are halves, the trained ones are not.
    assert run.model.projector.linear_1.weight.dtype == torch.bfloat16
    assert run.model.text_hidden_fcs[0].weight.dtype == torch.float32
    run.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6 and all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]


def test_an_update_that_the_scaler_leaves_out_says_nothing_of_the_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp16 the first scale overflows; clipped by an infinite norm, all gradients are zero."""
    sizes = iter([float("inf"), 1.0])
    checked: list[bool] = []

    class Check:
        done = False

        def __call__(self, masks: bool) -> None:
            checked.append(masks)

    monkeypatch.setattr(step, "total_of", lambda *_: SimpleNamespace(tokens=1, masks=1))
    monkeypatch.setattr(step, "accumulate", lambda *_: torch.ones(4))
    monkeypatch.setattr(step, "clip", lambda *_: torch.tensor(next(sizes)))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.0)
    fp16 = SimpleNamespace(scaler=object(), num_processes=1)
    for expected in ([], [True]):
        step.training_step(None, [], optimizer, tiny_plan(), fp16, Check())  # type: ignore[arg-type]
        assert checked == expected
