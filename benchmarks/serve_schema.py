"""schemathesis against `lisa-segment --serve`: do its answers keep to /openapi.json?

    python benchmarks/serve_schema.py --st .serving/bin/st       # a minute

schemathesis is a program of its own (`make serving` installs it into .serving): pytest would load
it as a plugin wherever it is installed. No schema can say which bytes are a picture, so a hook
gives it one. Exit code 1 if one of the checks fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from served import ROOT, keep, served, untrained_run, write_tables

sys.path.insert(0, str(ROOT))
from tests.fuzz import hostile  # noqa: E402

# Left out: negative_data_rejection, since whatever stands in a form's field is text.
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance", "positive_data_acceptance",
          "unsupported_method", "ignored_auth")  # fmt: skip

HOOKS = """
import schemathesis
from hypothesis import strategies

schemathesis.openapi.format("binary", strategies.just(bytes.fromhex("PNG")))
"""


def main() -> None:
    """Run it, keep the row, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--st", default="st", help="schemathesis' program")
    parser.add_argument("--examples", type=int, default=200)
    arguments = parser.parse_args()
    # It runs in another folder, to which a path from here would not lead.
    st = Path(
        shutil.which(arguments.st) or parser.error(f"{arguments.st}: no such program")
    ).absolute()
    version = subprocess.run([st, "--version"], capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        hooks = HOOKS.replace("PNG", hostile.png(64, 48).hex())
        (Path(place) / "hooks_of_serving.py").write_text(hooks)
        with served(untrained_run(Path(place) / "run", new_tokens=4)) as server:
            done = subprocess.run(
                [st, "run", f"{server.url}/openapi.json", "--seed", "0",
                 "--max-examples", str(arguments.examples), "--checks", ",".join(CHECKS),
                 "--continue-on-failure", "--report", "json", "--report-json-path", str(report)],
                cwd=place, env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks_of_serving"},
            )  # fmt: skip
        found = json.loads(report.read_text("utf-8"))
    counts, rates = found["test_cases"], found["valid_rates"]["POST /segment"]
    answered = sum(phase["accepted"] for phase in rates.values())
    if done.returncode:
        sys.exit("schemathesis found something")
    keep("schema", {
        "schemathesis": version.split()[-1], "checks": CHECKS, "cases": counts["generated"],
        "failures": counts["with_failures"], "answered": answered,
    })  # fmt: skip
    write_tables()


if __name__ == "__main__":
    main()
