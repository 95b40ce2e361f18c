"""The forecast: its tiers and verdicts, its cache, and a child that goes wrong."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor import rehearsal as child
from advisor.cli.main import app
from advisor.machine.budget import HostBudget
from advisor.machine.cuda_context import HOPPER, OTHERS
from advisor.memory import forecast as module
from advisor.memory.card import Card
from advisor.memory.forecast import Forecast, forecast
from advisor.memory.forecast_cache import key_of
from advisor.memory.worst_sample import Worst
from advisor.rehearsal import BadQuestion, RehearsalFailed
from profiles import environment as surroundings
from profiles.exchange import exchange, gradient_bytes, nccl_bytes
from profiles.grid import estimate
from profiles.host_memory import LIBRARIES_BYTES, shared_host_bytes
from profiles.plan import Plan
from profiles.sizes import gib
from tests.conftest import PHOTOS, tiny_plan

WORST = Worst(text_tokens=64)
CACHED = {"cached_encoders": ["mask", "vision"], "device": "cuda"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the module: a rehearsal takes seconds."""
    return tmp_path_factory.mktemp("forecasts")


@pytest.fixture
def cache(kept: Path, rehearsals_here: None) -> Path:
    """The same, filled without child processes; the command lines' tests start some."""
    return kept


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable in the place of Python; the test writes what it does."""
    path = tmp_path / "python"
    monkeypatch.setattr(surroundings.sys, "executable", str(path))
    return path


def write(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.prefix}/bin/python\nimport os, sys, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_tiers_build_on_each_other(cache: Path) -> None:
    found = forecast(tiny_plan(**CACHED), WORST, cache=cache)
    tensors, pool, process, host = found.tiers
    assert [tier.name for tier in found.tiers] == ["tensors", "pool", "process", "host"]
    assert 0 < tensors.bytes <= pool.bytes < process.bytes
    assert process.bytes - pool.bytes == OTHERS.plain_bytes
    assert host.bytes >= LIBRARIES_BYTES
    assert found.verdict == "UNKNOWN" and found.exit_code == 0
    # With expandable segments a block is as large as its tensor, to 512 bytes.
    assert tensors.bytes == max(found.phases.values())
    assert sum(found.live_at_peak.values()) == tensors.bytes
    assert all(tier.error for tier in found.tiers), "publish errors: benchmarks/forecast.py"


def test_host_tensors_move_from_the_card_to_the_host(cache: Path) -> None:
    here = forecast(tiny_plan(**CACHED), WORST, cache=cache)
    settings = CACHED | {"host_embeddings": True, "checkpointed_layers": 4, "host_layers": 4}
    there = forecast(tiny_plan(**settings), WORST, cache=cache)
    assert there.live_at_peak["frozen weights"] < here.live_at_peak["frozen weights"]
    assert there.tier("host").bytes > here.tier("host").bytes
    assert there.tier("process").bytes - there.tier("pool").bytes == OTHERS.bytes(pinned=True)
    hopper = forecast(tiny_plan(**settings), WORST, Card(context=HOPPER), cache)
    assert hopper.tier("process").bytes - hopper.tier("pool").bytes == (762 + 70) * 2**20


def test_verdict_under_a_cap_and_a_host_limit(cache: Path) -> None:
    plan = tiny_plan(**CACHED)
    pool = forecast(plan, WORST, cache=cache).tier("pool").bytes

    def judged(cap: int, host: HostBudget | None = None) -> Forecast:
        return forecast(plan, WORST, Card(cap_bytes=cap, host=host), cache)

    assert judged(pool).verdict == "FITS" and judged(pool).exit_code == 0
    tight = forecast(plan, WORST, Card(cap_bytes=pool + 100, margin_bytes=101), cache)
    assert (tight.verdict, tight.exit_code) == ("TIGHT", 0) and "margin" in tight.reason
    loose = forecast(plan, WORST, Card(cap_bytes=pool + 100, margin_bytes=100), cache)
    assert loose.verdict == "FITS"
    small = judged(pool // 3)
    assert (small.verdict, small.exit_code) == ("OOM", 1) and "asked for" in small.reason
    starved = judged(pool, HostBudget(bytes=2**30, basis="policy", source="a test"))
    assert starved.verdict == "OOM" and starved.reason.startswith("host memory")


def test_what_does_not_fit_says_which_micro_batch_should() -> None:
    plan = Plan.parse({"model": "7b", "device": "cuda", "effective_batch": 20, "micro_batch": 10})
    known = estimate(plan, 512)
    assert known is not None

    def told(cap: int, pool: int = known.pool_bytes) -> int | None:
        tier = module.Tier(name="pool", bytes=pool, source="")
        found = Forecast(plan=plan, verdict="OOM", compute_capability=(8, 6), text_tokens=512,
                         masks=1, cap_bytes=cap, tiers=(tier,))  # fmt: skip
        return module.fitting_micro_batch(found)

    five = estimate(plan.override(["micro_batch=5"]), 512)
    assert five is not None
    assert told(five.pool_bytes) == 5 and told(five.pool_bytes - 1) == 4
    assert told(five.pool_bytes, 2 * known.pool_bytes) == 2, "twice what the usual plan takes"
    assert told(2**30) is None


def test_whole_segments_promise_less(cache: Path) -> None:
    """Which of two equal blocks is used again is not known: their pool may be 2 % larger."""
    plan = tiny_plan(**CACHED, allocator="")
    pool = forecast(plan, WORST, cache=cache).tier("pool").bytes
    for cap, verdict in ((1.015, "TIGHT"), (1.03, "FITS")):
        assert forecast(plan, WORST, Card(cap_bytes=round(cap * pool)), cache).verdict == verdict


def test_compiled_plans_are_counted_by_a_rule_that_is_named(cache: Path) -> None:
    whole = Worst(text_tokens=60)  # 160 in all: compiled layers pad to a multiple of 32
    plain = forecast(tiny_plan(**CACHED), whole, cache=cache)
    compiled = forecast(tiny_plan(**CACHED, compile=True), whole, cache=cache)
    assert compiled.tier("tensors").bytes < plain.tier("tensors").bytes
    assert any("compiled layers take" in text for text in compiled.assumed)
    pool = compiled.tier("pool").bytes
    small = forecast(compiled.plan, whole, Card(cap_bytes=pool // 3), cache)
    assert small.verdict == "OOM"
    assert small.reason == f"the pool grows to {gib(pool)} of {gib(pool // 3)}", "no other figures"


def test_a_mixture_holds_more_masks_and_longer_answers(cache: Path) -> None:
    alone = tiny_plan(**CACHED, micro_batch=8, effective_batch=8)
    shapes = alone.override(["mixture.sem_seg=9"])
    talks = alone.override(["mixture.vqa=3"])
    found = [forecast(plan, Worst(), cache=cache) for plan in (alone, shapes, talks)]
    assert [(f.masks, f.answer_tokens) for f in found] == [(1, None), (3, None), (1, 512)]
    tensors = [f.tier("tensors").bytes for f in found]
    assert tensors[0] < tensors[1] and tensors[0] < tensors[2]
    few = alone.override(["mixture.sem_seg=9", "tokens.max_masks=2"])
    assert few.most_masks == 2


@pytest.mark.parametrize(
    "name",
    [
        "vqa/x.json",
        "refer_seg/refcoco/refs(unc).p",
        "ade20k/objectInfo150.txt",
        "sem_seg/mine/annotations/training/a.png",
    ],
)
def test_changed_annotations_of_a_mixture_are_forecast_anew(tmp_path: Path, name: str) -> None:
    plan, path = tiny_plan(mixture={"vqa": 1}), tmp_path / name
    key = key_of(plan, Worst(data=tmp_path), (8, 6))
    path.parent.mkdir(parents=True)
    path.write_text("new")
    assert key_of(plan, Worst(data=tmp_path), (8, 6)) != key


def test_a_file_that_vanishes_while_the_data_are_looked_through_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.json").symlink_to(tmp_path / "absent")
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # as it was a moment ago
    assert key_of(tiny_plan(), Worst(data=tmp_path), (8, 6))


def test_a_folder_without_reasonseg_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "key_of", lambda *_: pytest.fail("looked through"))
    with pytest.raises(BadQuestion, match="holds no ReasonSeg data; needed: ReasonSeg/train"):
        forecast(tiny_plan(**CACHED), Worst(data=tmp_path), cache=tmp_path)


def test_an_answer_is_kept_and_a_damaged_one_made_again(
    tmp_path: Path, rehearsals_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = forecast(tiny_plan(**CACHED), WORST, cache=tmp_path)

    def again(*_: object) -> None:
        raise RehearsalFailed("asked again")

    monkeypatch.setattr(child, "in_child", again)
    assert forecast(tiny_plan(**CACHED), WORST, cache=tmp_path) == first
    # The plan's own limit, named: the same question.
    named = Worst(text_tokens=64, masks=first.plan.most_masks)
    assert forecast(tiny_plan(**CACHED), named, cache=tmp_path) == first
    with pytest.raises(RehearsalFailed, match="asked again"):
        forecast(tiny_plan(**CACHED), Worst(text_tokens=65), cache=tmp_path)
    for path in tmp_path.glob("*.events"):
        path.write_bytes(b"123")
    with pytest.raises(RehearsalFailed, match="asked again"):
        forecast(tiny_plan(**CACHED), WORST, cache=tmp_path)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('phase: backward', file=sys.stderr, flush=True); os.abort()",
         r"signal 6 \(phase: backward\)"),
        ("sys.exit('no such thing')", r"code 1: no such thing \(phase: start\)"),
        ("print('hello')", "printed no measurement"),
        ("print('phase: load', file=sys.stderr, flush=True); time.sleep(30)",
         r"did not end in 1 s \(phase: load\)"),
    ],
)  # fmt: skip
def test_a_child_that_goes_wrong_is_told_with_its_phase_and_log(
    body: str, told: str, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "TIMEOUT_SECONDS", 1)
    write(stub, body)
    with pytest.raises(RehearsalFailed, match=told) as caught:
        forecast(tiny_plan(**CACHED), WORST, cache=tmp_path)
    log = Path(str(caught.value).rpartition("log is ")[2])
    assert log.is_file()
    if "hello" in body:
        assert "hello" in log.read_text()


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path, rehearsals_here: None
) -> None:
    """The walk of tests/test_wheel.py has it start its child process."""
    monkeypatch.setattr(module, "cache_folder", lambda: kept.parent)
    (kept.parent / "forecasts").unlink(missing_ok=True)
    (kept.parent / "forecasts").symlink_to(kept)
    path = tmp_path / "plan.json"
    path.write_text(tiny_plan(**CACHED).to_json())
    empty = tmp_path / "empty"
    empty.mkdir()
    ask = ["forecast", str(path), "--text-tokens", "64", "--compute-capability", "8.6"]
    runner = CliRunner()
    shown = runner.invoke(app, [*ask, "--vram", "8GiB"])
    assert shown.exit_code == 0 and "FITS  on 8 GiB card" in shown.stdout
    for word in ("tensors", "pool", "process", "host", "backward", "cuBLAS"):
        assert word in shown.stdout
    document = Forecast.model_validate_json(runner.invoke(app, [*ask, "--json"]).stdout)
    assert document.text_tokens == 64 and document.plan == Plan.read(path)
    for wrong in (["--vram", "8192"], ["--compute-capability", "x"], ["--masks", "0"],
                  ["--set", "model=99b"], ["--data-dir", str(tmp_path / "absent")]):  # fmt: skip
        assert runner.invoke(app, [*ask, *wrong]).exit_code == 2, wrong
    both = [*ask, "--data-dir", str(PHOTOS)]
    above = ["forecast", str(path), "--text-tokens", "600"]
    before = ["--set", "seed=1", *ask]
    for wrong, told in ((both, "give one"), (above, "the plan allows 512"), (before, "after its")):
        refused = runner.invoke(app, wrong)
        assert refused.exit_code == 2 and told in refused.stderr
    bad = runner.invoke(app, ["forecast", str(path), "--data-dir", str(empty)])
    assert bad.exit_code == 2 and str(empty) in bad.stderr and "log" not in bad.stderr
    real = runner.invoke(app, ["forecast", str(path), "--data-dir", str(PHOTOS), "--json"])
    longest = Forecast.model_validate_json(real.stdout).text_tokens
    assert 40 < longest < Plan.read(path).tokens.max_text_tokens


def test_no_figure_where_memory_cannot_be_seen(tmp_path: Path, stub: Path) -> None:
    """Exit 3 and the reason, never a number."""
    measurement = {"plan": tiny_plan().model_dump(mode="json"), "verdict": "UNKNOWN",
                   "error": "operator x.y is a kernel", "gpu": "none", "gpu_bytes": 0,
                   "text_tokens": [64, 64], "masks": 1, "random_weights": True}  # fmt: skip
    write(stub, "open(sys.argv[sys.argv.index('--events') + 1], 'w').close()\n"
                f"print({json.dumps(measurement)!r})")  # fmt: skip
    found = forecast(tiny_plan(**CACHED), WORST, Card(cap_bytes=2**40), tmp_path)
    assert (found.verdict, found.exit_code, found.tiers) == ("UNKNOWN", 3, ())
    assert "operator x.y" in found.reason


def test_a_plan_for_the_cpu_gets_no_figure(stub: Path, tmp_path: Path) -> None:
    write(stub, "sys.exit('asked')")  # and nothing is run
    found = forecast(
        tiny_plan(**CACHED | {"device": "cpu"}), WORST, Card(cap_bytes=2**40), tmp_path
    )
    assert (found.verdict, found.exit_code, found.tiers) == ("UNKNOWN", 3, ())
    assert "no card to count" in found.reason


def test_of_several_processes_one_is_counted_and_host_memory_of_a_machine(cache: Path) -> None:
    """Each takes buckets in its pool and NCCL's buffers beside it; the host holds one copy."""
    hosted = CACHED | {"host_embeddings": True}
    plans = {n: tiny_plan(**hosted, effective_batch=2 * n, processes=n) for n in (1, 2, 4)}
    plans[8] = tiny_plan(**hosted, effective_batch=8, processes=4, nodes=2)
    one, two, four, on_two_machines = (
        forecast(plan, WORST, cache=cache) for plan in plans.values()
    )
    more = two.tier("tensors").bytes - one.tier("tensors").bytes
    assert more == pytest.approx(gradient_bytes(plans[2]), abs=2**16)
    page = 2 << 20  # by which the pool grows; lisa-tiny peaks as it loads
    assert two.tier("pool").bytes >= one.tier("pool").bytes - page
    for name in ("tensors", "pool", "process"):
        assert four.tier(name).bytes == two.tier(name).bytes
    beside = [found.tier("process").bytes - found.tier("pool").bytes for found in (one, two)]
    assert beside[1] - beside[0] == nccl_bytes(plans[2]) > 0
    assert exchange().nccl_source in two.tier("process").source
    here, there = one.tier("host").bytes, two.tier("host").bytes
    shared = shared_host_bytes(plans[1])
    assert there == pytest.approx(2 * here - shared, rel=1e-3)
    assert on_two_machines.tier("host").bytes == there < four.tier("host").bytes
    cap = one.tier("pool").bytes // 2 + nccl_bytes(plans[2])
    judged = [forecast(plans[n], WORST, Card(cap_bytes=cap), cache).verdict for n in (1, 2)]
    assert judged == ["FITS", "OOM"], "NCCL leaves the pool less of the card"


def test_a_dtype_that_was_never_measured_says_so(cache: Path) -> None:
    found = forecast(tiny_plan(**CACHED, dtype="fp16"), WORST, cache=cache)
    assert all("no measured row computes in fp16" in tier.error for tier in found.tiers)
