"""The node of integrations/comfyui in ComfyUI itself, which asks `lisa-segment --serve`.

    python benchmarks/comfyui.py COMFYUI --python COMFYUI/.venv/bin/python    # a minute

COMFYUI: a checkout of ComfyUI, started with --cpu by a Python that has what it requires. Nothing is
written there. Workflows are queued as its page does it; a table of what came of them goes into
integrations/comfyui/README.md. Exit code 1 if any came to something else than it must.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from served import ROOT, Served, keep, served, untrained_run
from tables import put

NODE = ROOT / "integrations" / "comfyui"
PAGE = NODE / "README.md"
MARK = "benchmarks/comfyui.py"
QUESTION = "What would you drink from?"
NOISE = 3000  # pixels a side: as a PNG more than the server takes


@dataclass
class Done:
    """What came of a workflow: ComfyUI's own events, and the pictures and texts of its outputs."""

    events: dict[str, Any]
    outputs: dict[str, Any] = field(repr=False)

    @property
    def error(self) -> str:
        """The error of the node, with the node's number."""
        told = self.events.get("execution_error", {})
        return f"{told.get('node_id')}: {told.get('exception_message')}" if told else ""


class Comfy:
    """A running ComfyUI, and its folder."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client, self.folder = httpx2.Client(base_url=url, timeout=30), folder

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def queue(self, workflow: dict[str, Any]) -> str:
        """The number of a workflow that was queued. Raises RuntimeError if it is refused."""
        found = self.client.post("/prompt", json={"prompt": workflow})
        if found.status_code != 200:
            raise RuntimeError(found.text)
        return str(found.json()["prompt_id"])

    def wait(self, number: str, seconds: float = 120) -> Done:
        """What came of it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if told := self.get(f"/history/{number}").get(number):
                return Done(dict(told["status"]["messages"]), told["outputs"])
            time.sleep(0.05)
        raise RuntimeError(f"no end within {seconds} s")

    def run(self, workflow: dict[str, Any]) -> Done:
        return self.wait(self.queue(workflow))

    def pictures(self, done: Done, node: str) -> np.ndarray:
        """Its output's pictures [B, H, W, 3]. Raises RuntimeError with the error of a node."""
        if done.error:
            raise RuntimeError(done.error)
        found = [
            self.client.get("/view", params={n: one[n] for n in ("filename", "subfolder", "type")})
            for one in done.outputs[node]["images"]
        ]
        return np.stack([pixels(one.content) for one in found])


def pixels(content: bytes) -> np.ndarray:
    """[H, W, 3] of a file."""
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


@contextmanager
def comfy(checkout: Path, python: Path, folder: Path, server: str) -> Iterator[Comfy]:
    """ComfyUI with the node in a folder of its own, told the server's address."""
    nodes = folder / "custom_nodes"
    nodes.mkdir()
    (nodes / "lisa-segment").symlink_to(NODE)
    url = "http://127.0.0.1:8199"
    command = [str(python), "main.py", "--cpu", "--port", "8199", "--base-directory", str(folder),
               "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=checkout, stdout=log, stderr=log,
            env=os.environ | {"LISA_SEGMENT_ADDRESS": server, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            for _ in range(600):
                time.sleep(0.2)
                try:
                    httpx2.get(f"{url}/system_stats")
                    break
                except httpx2.TransportError:
                    if process.poll() is not None:
                        break
            else:
                raise RuntimeError("ComfyUI does not answer")
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            yield Comfy(url, folder)
        finally:
            process.kill()
            process.wait()


def workflow(question: str, *pictures: str) -> dict[str, Any]:
    """Pictures -> our node -> what ComfyUI has for masks and texts."""
    found: dict[str, Any] = {
        f"load{n}": {"class_type": "LoadImage", "inputs": {"image": name}}
        for n, name in enumerate(pictures)
    }
    image = ["load0", 0]
    for n in range(1, len(pictures)):
        inputs = {"image1": image, "image2": [f"load{n}", 0]}
        found[f"batch{n}"], image = {"class_type": "ImageBatch", "inputs": inputs}, [f"batch{n}", 0]
    asked = {"image": image, "question": question, "kind": "sentence"}
    red = {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF0000}
    laid = {"destination": image, "source": ["red", 0], "x": 0, "y": 0, "resize_source": True,
            "mask": ["ours", 0]}  # fmt: skip
    return found | {
        "ours": {"class_type": "LisaSegment", "inputs": asked},
        "grey": {"class_type": "MaskToImage", "inputs": {"mask": ["ours", 0]}},
        "mask": {"class_type": "PreviewImage", "inputs": {"images": ["grey", 0]}},
        "red": {"class_type": "EmptyImage", "inputs": red},
        "composite": {"class_type": "ImageCompositeMasked", "inputs": laid},
        "laid": {"class_type": "PreviewImage", "inputs": {"images": ["composite", 0]}},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["ours", 1]}},
    }


def answer(url: str, picture: bytes, question: str) -> tuple[np.ndarray, str]:
    """The server's own mask [H, W] and words."""
    sent = {"files": {"picture": picture}, "data": {"question": question}}
    told = httpx2.post(f"{url}/segment", **sent, timeout=60).json()
    row = told["answers"][0]
    whole = np.zeros((told["height"], told["width"]), bool)
    for mask in row["masks"]:
        whole |= coco.decode({"size": mask["size"], "counts": mask["counts"].encode()}) == 1
    return whole, row["answer"]


class Trial:
    """All that is tried, one after the other; each method returns whether it came out right."""

    def __init__(self, ui: Comfy, server: Served, run: Path) -> None:
        self.ui, self.server, self.run = ui, server, run
        self.names = sorted(path.name for path in (ui.folder / "input").glob("*.png"))
        self.files = [(ui.folder / "input" / name).read_bytes() for name in self.names]

    def listed(self) -> bool:
        """`/object_info` lists the node with its inputs and outputs"""
        told = self.ui.get("/object_info/LisaSegment")["LisaSegment"]
        inputs, outputs = told["input_order"]["required"], told["output"]
        return inputs == ["image", "question", "kind"] and outputs == ["MASK", "STRING"]

    def one(self) -> bool:
        """a picture: `MaskToImage` is white where the server's own answer points, pixel by pixel"""
        done = self.ui.run(workflow(QUESTION, self.names[0]))
        mask, words = answer(self.server.url, self.files[0], QUESTION)
        shown = self.ui.pictures(done, "mask")[0]
        return 0 < mask.mean() < 1 and np.array_equal(shown, 255 * mask[..., None].repeat(3, 2)) \
            and done.outputs["text"]["text"] == [words]  # fmt: skip

    def batch(self) -> bool:
        """a batch of two: two masks and two lines, each as for its picture alone"""
        done = self.ui.run(workflow(QUESTION, *self.names))
        alone = [answer(self.server.url, file, QUESTION) for file in self.files]
        shown = self.ui.pictures(done, "mask")[..., 0] == 255
        masks = np.stack([mask for mask, _ in alone])
        return np.array_equal(shown, masks) and \
            done.outputs["text"]["text"] == ["\n".join(words for _, words in alone)]  # fmt: skip

    def composite(self) -> bool:
        """`ImageCompositeMasked` lays another picture over what the answer points at, no more"""
        done = self.ui.run(workflow(QUESTION, self.names[0]))
        shown, before = self.ui.pictures(done, "laid")[0], pixels(self.files[0])
        mask, _ = answer(self.server.url, self.files[0], QUESTION)
        return np.array_equal(shown, np.where(mask[..., None], [255, 0, 0], before))

    def large(self) -> bool:
        """a picture whose PNG the server would refuse is asked about all the same"""
        noise = np.random.default_rng(0).integers(0, 256, (NOISE, NOISE, 3), np.uint8)
        Image.fromarray(noise).save(self.ui.folder / "input" / "noise.png", compress_level=0)
        done = self.ui.run(workflow(QUESTION, "noise.png"))
        return self.ui.pictures(done, "mask").shape[1:3] == (NOISE, NOISE)

    def again(self) -> bool:
        """queued again, the node is not run again"""
        self._again()
        return self._kept()

    def empty(self) -> bool:
        """an empty question: the node's error is the server's"""
        error = self.ui.run(workflow(" ", self.names[0])).error
        return error.startswith("ours: lisa-segment: question: question text is empty")

    def cancelled(self) -> bool:
        """cancelled while the model computes: the run ends within a second, and so does the
        request at the server"""
        process = self.server.model_process()
        assert process is not None
        process.suspend()
        try:
            number = self.ui.queue(workflow("What is cancelled?", self.names[0]))
            while self._waiting() == 0:
                time.sleep(0.05)
            started = time.monotonic()
            self.ui.client.post("/interrupt")
            done = self.ui.wait(number)
            seconds = time.monotonic() - started
            time.sleep(0.2)
            return seconds < 1 and "execution_interrupted" in done.events and self._waiting() == 0
        finally:
            process.resume()

    def gone(self) -> bool:
        """the server is stopped: the node's earlier answer is kept, another question's error says
        what to start"""
        kept = self._kept()
        error = self.ui.run(workflow("What is new?", self.names[0])).error
        return kept and error.startswith("ours: http://") and "start lisa-segment --serve" in error

    def another(self) -> bool:
        """the server comes back with the same model: the answer is kept; with another: a new one"""
        port = self.server.url.rpartition(":")[2]
        with served(self.run, port=port):
            same = self._kept()
        other = untrained_run(self.ui.folder / "other", new_tokens=12)
        with served(other, port=port):
            return same and not self._kept()

    def _again(self) -> Done:
        return self.ui.run(workflow(QUESTION, self.names[0]))

    def _kept(self) -> bool:
        """Whether the node is not run again."""
        return "ours" in self._again().events["execution_cached"]["nodes"]

    def _waiting(self) -> int:
        return int(httpx2.get(f"{self.server.url}/health").json()["waiting"])


def tried(trial: Trial, *names: str) -> dict[str, bool]:
    """What each came to, by what it says of itself."""
    found = {}
    for name in names:
        one = getattr(trial, name)
        said = " ".join(one.__doc__.split())
        try:
            found[said] = bool(one())
        except (RuntimeError, KeyError, httpx2.HTTPError) as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            found[said] = False
        print("yes" if found[said] else "NO", said, flush=True)
    return found


def prepare(folder: Path) -> None:
    """Two pictures to ask about. As PNG: ComfyUI decodes JPEG by another library."""
    sys.path.insert(0, str(ROOT))
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.synthetic.dataset import write_dataset

    write_dataset(folder / "data", seed=0, train=2, val=0, test=0)
    (folder / "input").mkdir()
    for item in read_split(folder / "data", "train"):
        Image.open(item.image_path).save(folder / "input" / f"{item.image_path.stem}.png")


def write_table(row: dict[str, Any]) -> None:
    """Into the node's README."""
    lines = ["| workflow | as it must be |", "|---|---|"]
    lines += [
        f"| {said} | {'yes' if right else '**no**'} |" for said, right in row["tried"].items()
    ]
    packages = ", ".join(f"{name} {number}" for name, number in row["packages"].items())
    where = (
        f"{row['date']}: ComfyUI {row['comfyui']} with `--cpu` on Python {row['python']} and torch "
        f"{row['its_torch']}; lisa-tiny, {packages}."
    )
    put(PAGE, f"<!-- {MARK} -->", f"<!-- /{MARK} -->", [*lines, "", where])


def main() -> None:
    """Try all, keep the row, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--python", type=Path, required=True, help="the Python that runs it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        run = untrained_run(folder / "run")
        with (
            served(run) as first,
            comfy(given.comfyui, given.python.absolute(), folder, first.url) as ui,
        ):
            about = ui.get("/system_stats")["system"]
            trial = Trial(ui, first, run)
            found = tried(trial, "listed", "one", "batch", "composite", "large", "again", "empty",
                          "cancelled")  # fmt: skip
            trial.again()
            first.process.terminate()
            first.process.wait()
            found |= tried(trial, "gone", "another")
    row = {
        "tried": found,
        "comfyui": about["comfyui_version"],
        "python": about["python_version"].split()[0],
        "its_torch": about["pytorch_version"],
    }
    write_table(keep("comfyui", row))
    if not all(found.values()):
        sys.exit("some came to something else")


if __name__ == "__main__":
    main()
