"""The process that holds the model for `lisa-segment --serve`; the server starts it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from profiles.streams import tell
from trainer.parallel.launch import end_with_parent
from trainer.process import clear_leftover_variables, work_offline
from trainer.serve.limits import RESIDENT


def main() -> None:
    """Load the model that the arguments name and answer until the server is gone."""
    from trainer.serve.worker import own_stdout, report_failure

    clear_leftover_variables()
    work_offline()
    sink = own_stdout()
    asked = json.loads(sys.argv[1])
    try:
        worker, facts = _loaded(asked)
    except (ValueError, OSError, RuntimeError) as error:
        report_failure(sink, str(error))
        sys.exit(1)
    worker.serve(sys.stdin.buffer, sink, facts)


def _loaded(asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, ready to answer, and what `GET /model` says of it."""
    from trainer.answer.segmenter import Segmenter
    from trainer.answer.trained_model import find_trained
    from trainer.cli.segment import planned_for
    from trainer.serve.worker import Worker

    trained = find_trained(Path(asked["run"]), [*asked["set"], RESIDENT])
    limits = trained.plan.tokens
    plan, fit = planned_for(
        trained, lambda: (limits.max_text_tokens, trained.plan.profile.most_image_tokens)
    )
    segmenter = Segmenter(trained, [], Path(), plan=plan)
    facts = {
        "model": plan.model,
        "plan": plan.content_hash,
        "weights": trained.fingerprint,
        "device": plan.device,
        "max_masks": limits.max_masks,
        "max_text_tokens": limits.max_text_tokens,
        "memory": fit.line() if fit else None,
    }
    tell(f"{plan.model} is loaded")
    os.chdir(asked["folder"])
    return Worker(segmenter, asked["pixels"], limits.max_text_tokens), facts


if __name__ == "__main__":
    end_with_parent()  # without its server it would go on until the model is loaded
    main()
