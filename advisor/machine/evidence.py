"""What the advice knows beside the machine and the question: rows, contexts, versions, variables.

`advise` reads nothing else, so the same question with the same evidence has the same answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from advisor.machine.cuda_context import (
    Context,
    context_of,
    kept_contexts,
    library_versions,
)
from advisor.machine.gpu import Gpu, Machine
from profiles.tested import Table, TestedRow, read_table, shipped_table


@dataclass(frozen=True)
class Evidence:
    """Tested rows, contexts measured on this machine, versions of libraries, and the shell's."""

    table: Table = Table((), ())
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries, by name
    contexts: Mapping[str, Context] = field(default_factory=dict)  # by cuda_context.key_of
    environment: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    @cache
    def shipped() -> Evidence:
        """What comes with the package: the same on every machine, whatever will run there."""
        return Evidence(shipped_table())

    @staticmethod
    def here() -> Evidence:
        """What is known on this machine: the user's rows too, and what was measured here."""
        return Evidence(read_table(), library_versions(), kept_contexts(), dict(os.environ))

    @property
    def own_rows(self) -> tuple[TestedRow, ...]:
        """The user's rows of the table."""
        return tuple(row for row in self.table.rows if row.source == "user")

    def context(self, gpu: Gpu, machine: Machine) -> Context:
        """What a process takes on `gpu` beside torch's pool."""
        return context_of(gpu, machine, self.contexts, self.versions)
