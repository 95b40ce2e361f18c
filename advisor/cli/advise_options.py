"""The options of `lisa-advise` and of its `report`, each as one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from advisor.cli.options import (
    PLOT_SUFFIXES,
    Card,
    DataDir,
    Json,
    Model,
    Prefer,
    Ram,
    System,
    Vram,
    explained_names,
    is_plan,
    memory_size,
    must_be_writable,
)
from profiles.command_line import Recipe, Version
from profiles.exits import fail
from profiles.numbers import option_parser, parse_count, parse_hours, parse_price
from profiles.overrides import given_settings
from profiles.recipe import with_recipe
from profiles.shared_options import (
    SOME,
    Gpus,
    LoraRank,
    Nodes,
    Settings,
    SkipBroken,
    Text,
    Unquantized,
    Weights,
)

if TYPE_CHECKING:
    from profiles.measurement import DataCounts

VAL_SHARE = 0.1  # of pictures, as lisa-train import has it
two_or_more = option_parser(partial(parse_count, least=2))


@dataclass(frozen=True, kw_only=True)
class AskedOptions:
    """Options that `lisa-advise` and its `report` share, in the order of the help."""

    panels: ClassVar[Mapping[str, str]] = {
        "recipe": "Plan", "gpus": "Machine", "skip_broken": "Data, time and cost",
    }  # fmt: skip

    model: Model = None
    gpu: Card = None
    vram: Vram = None
    data_dir: DataDir = None
    recipe: Recipe = None
    settings: Settings = None
    weights: Weights = None
    lora_r: LoraRank = None
    no_quantization: Unquantized = False
    prefer: Prefer = "usual"
    gpus: Gpus = None
    nodes: Nodes = None
    ram: Ram = None
    system: System = None
    skip_broken: SkipBroken = None
    pictures: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=two_or_more,
            help="Without --data-dir: for N pictures, a tenth to validate on.",
        ),
    ] = None
    questions: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=two_or_more, help="With --pictures: questions about them.  [N]"
        ),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the data.  [10]", **SOME),
    ] = None
    hours: Annotated[
        float | None,
        typer.Option(
            metavar="H",
            parser=option_parser(parse_hours),
            help="Say how many epochs fit into H hours.",
        ),
    ] = None
    price: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            parser=option_parser(parse_price),
            help="Say what the training costs at P an hour for all cards.",
        ),
    ] = None

    def assignments(self) -> list[str]:
        """Settings of the recipe, of short options, and of --set; alpha follows --lora-r.

        Raises PlanError for a recipe that cannot be read, and for a setting with two values.
        """
        options = {
            "quantization": "none" if self.no_quantization else None,
            "weights": self.weights,
            "schedule.epochs": self.epochs,
        }
        given = given_settings(options, self.settings or (), self.lora_r)
        return with_recipe(self.recipe, given, self.model)

    def size(self) -> DataCounts | None:
        """How much there is to train on, if given: a tenth validates, as in `lisa-train import`."""
        from profiles.measurement import DataCounts

        if self.pictures is None:
            return None
        asked = self.questions or self.pictures
        val, val_asked = (max(1, round(VAL_SHARE * number)) for number in (self.pictures, asked))
        return DataCounts(train_pictures=self.pictures - val, val_pictures=val,
                          epoch_questions=asked - val_asked, val_questions=val_asked)  # fmt: skip

    def check(self) -> None:
        """End with exit code 2 where options contradict each other or name what cannot be written.

        Before the work, not after it.
        """
        if self.pictures is not None and self.data_dir is not None:
            fail("--pictures: --data-dir counts the pictures; give one of the two")
        if self.questions is not None and self.pictures is None:
            fail("--questions: give --pictures N too, of the pictures that they are about")
        if self.questions is not None and self.pictures and self.questions < self.pictures:
            least = f"{self.pictures} or more: each picture has one"
            fail(f"--questions: got {self.questions}; allowed: {least}")


@dataclass(frozen=True, kw_only=True)
class AdviseOptions(AskedOptions):
    """The options of a bare `lisa-advise`."""

    panels: ClassVar[Mapping[str, str]] = {
        **AskedOptions.panels, "why": "", "measure": "Trials on this GPU", "explain": "Output",
        "version": "",
    }  # fmt: skip

    why: Annotated[
        bool, typer.Option("--why", help="Print the reasons, the other plans and all notes.")
    ] = False
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, if it fits, to FILE.")
    ] = None
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run three steps of the plan on this GPU.")
    ] = False
    emulate_vram: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=memory_size,
            help="Try a smaller card's plan here, under its cap.",
        ),
    ] = None
    explain: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="Explain a word of the answer or a setting, and exit.",
            autocompletion=explained_names,
        ),
    ] = None
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw one step's memory as a picture.")
    ] = None
    as_json: Json = False
    version: Version = False
    svg: Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)] = None

    def check(self) -> None:
        """End with exit code 2 for contradictions, also among this command's own options."""
        super().check()
        named = self.vram or self.gpu
        if self.emulate_vram is not None and named:
            fail("--emulate-vram gives the card's size already; leave out --vram and --gpu")
        if self.measure and named:
            fail("--measure needs a card here; --emulate-vram SIZE tries the plan of a smaller one")
        must_be_writable(self.save, "a plan", is_plan)
        for path in (self.plot, self.svg):
            must_be_writable(path)
        if self.plot is not None and self.plot.suffix.lower() not in PLOT_SUFFIXES:
            endings = ", ".join(PLOT_SUFFIXES)
            fail(f"--plot: got {self.plot.name}; the name must end in one of {endings}")
