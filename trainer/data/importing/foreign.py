"""Recognises files of tools that are not supported, and says what to export instead."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.data.findings import Report
from trainer.data.images import PICTURE_SUFFIXES
from trainer.data.importing.foreign_kinds import DATA, KINDS, OWN

READ = ("LabelMe's files, COCO's instances, YOLO's folder of outlines, Label Studio's JSON, or "
        "Sa2VA's annotations")  # fmt: skip
_HEAD_BYTES = 4096
# Suffixes of files that may be such, in lower case.
_BINARY = (".p", ".pkl", ".pickle", ".mat", ".npy", ".npz", ".parquet", ".arrow", ".h5", ".hdf5",
           ".tfrecord", ".bin", ".nii", ".dcm")  # fmt: skip
MAY_BE_FOREIGN = frozenset((*_BINARY, ".geojson", ".manifest",
                            ".xml", ".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".yaml", ".yml",
                            ".txt", ".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".tbz2",
                            ".xz", ".txz", ".zst"))  # fmt: skip
_ARCHIVES = {b"PK\x03\x04": "a ZIP", b"Rar!\x1a\x07": "a RAR",
             b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"\x1f\x8b": "a gzip archive",
             b"BZh": "a bzip2 archive",
             b"\xfd7zXZ\0": "an xz archive", b"\x28\xb5\x2f\xfd": "a zstd archive"}  # fmt: skip
_TAR = slice(257, 262)
_TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")
_LINES = (".jsonl", ".ndjson")


def is_other(report: Report) -> bool:
    """Whether the file is no JSON, or of a known unsupported kind: a finding then."""
    if is_foreign(report):
        return True
    suffix, head = report.path.suffix.lower(), _start(report.path).decode("utf-8-sig", "ignore")
    if suffix in (*_TABLES, *_LINES) and re.search(r"\bquestion\b", head, re.IGNORECASE):
        fix = "name it with --questions, and the annotations as SRC"
        report.add("file", "a file of questions", READ, fix)
    elif suffix in _TABLES:
        report.add("file", "a table", READ, OWN)
    elif suffix in _LINES:
        report.add("file", "JSON lines", READ, f"put all lines into one list; or {OWN}")
    elif suffix != ".json" and head.strip() and head.lstrip()[0] not in "{[":
        report.add("file", f"{suffix or 'a file without a suffix'}, no JSON", READ, OWN)
    else:
        return False
    return True


def _start(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, which its reader reports."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def is_foreign(report: Report) -> bool:
    """Whether the file at the report's path is of a known unsupported kind: a finding then."""
    start = _start(report.path)
    if report.path.suffix.lower() in PICTURE_SUFFIXES:
        report.add("file", "a picture", READ, "name its annotations, or the folder that has them")
        return True
    archive = next((what for mark, what in _ARCHIVES.items() if start.startswith(mark)), None)
    if archive and report.path.suffix.lower() in _TABLES:  # .xlsx is a ZIP
        report.add("file", "a table", READ, OWN)
        return True
    if archive or start[_TAR] == b"ustar":
        fix = "unpack it, and name the folder or the file of annotations in it"
        report.add("file", archive or "a tar archive", READ, fix)
        return True
    if report.path.suffix.lower() in _BINARY:
        fix = DATA if report.path.suffix == ".p" else OWN  # RefCOCO's references
        report.add("file", f"a binary file ({report.path.suffix})", READ, fix)
        return True
    head = start.decode("utf-8-sig", "ignore").lstrip()
    if '"shapes"' in head:  # LabelMe's, of which a folder may have a hundred thousand
        return False
    kind = next((one for one in KINDS if one.pattern.match(head)), None)
    if kind is not None:
        report.add("file", kind.name, READ, kind.fix)
    return kind is not None
