"""What lies beside the pictures and the weights that are meant: read as well, or told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import save_file

from trainer.answer.questions import ignored_files_line, read_questions
from trainer.convert.checkpoint_folder import Source, weights_files
from trainer.convert.hub import checkpoint_folder
from trainer.data.findings import DataError, Report
from trainer.data.formats.sem_seg import read as read_sem_seg
from trainer.data.formats.vqa import read as read_vqa
from trainer.data.images import open_image, read_image
from trainer.model.families.llava_sam.family import FAMILY
from trainer.model.weights import FolderWeights, WeightsError

NAMES = ("IMG 1.JPG", "b.webp", "c.BMP", "d.jfif", "e.Tif", "f.tiff", "g.gif", "h.jpe", "猫 ä.png")
STATES = ("rng_state_0.pth", "rng_state.pth", "optimizer.pth", "scheduler.pth", "scaler.pth")


def picture(path: Path, kind: str = "PNG") -> Path:
    Image.new("RGB", (8, 6), (9, 99, 200)).save(path, kind)
    return path


def asked(folder: Path) -> list[str]:
    return sorted(one.image.name for one in read_questions(folder, "Where?", None, False, False))


def test_every_picture_of_a_folder_is_asked_about(tmp_path: Path) -> None:
    kinds = {".jpg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
    for name in NAMES:
        suffix = Path(name).suffix.lower()
        picture(tmp_path / name, kinds.get(suffix, suffix[1:].upper()))
        assert read_image(tmp_path / name).shape == (6, 8, 3)
    picture(tmp_path / "no suffix")
    picture(tmp_path / "photo.jpg_large", "JPEG")
    assert asked(tmp_path) == sorted((*NAMES, "no suffix", "photo.jpg_large"))
    assert ignored_files_line(tmp_path) is None


def test_what_is_no_picture_is_passed_over_and_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    for name in ("notes.txt", "Thumbs.db", "._a.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    (tmp_path / "album.jpg").mkdir()
    assert asked(tmp_path) == ["a.jpg"]
    told = ignored_files_line(tmp_path) or ""
    assert all(name in told for name in ("notes.txt", "Thumbs.db", "more/", "album.jpg/"))
    assert "._a.jpg" not in told and ".DS_Store" not in told


def test_a_folder_without_pictures_names_those_below_that_have_some(tmp_path: Path) -> None:
    """As an imported data set is: DST/ReasonSeg/train."""
    for folder in ("ReasonSeg/train", "ReasonSeg/val", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
        picture(tmp_path / folder / "a.jpg")
    with pytest.raises(ValueError, match="no picture in it") as refused:
        read_questions(tmp_path, "What is it?", None, False, False)
    below = tmp_path / "ReasonSeg"
    assert f"hint: pictures lie in {below / 'train'}, {below / 'val'}; name" in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in it$"):
        read_questions(tmp_path / "empty", "What is it?", None, False, False)


def test_a_format_that_is_not_read_is_asked_about_so_that_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    assert asked(tmp_path) == ["phone.HEIC"]


def test_earlier_answers_are_no_pictures_to_ask_about(tmp_path: Path) -> None:
    written = ("a.mask.png", "a.overlay.png", "a-2.mask-1.png", "a-2.overlay.png")
    for name in ("a.jpg", "other.mask.png", *written):
        picture(tmp_path / name)
    assert asked(tmp_path) == ["a.jpg", "other.mask.png"]  # that one is nobody's answer
    assert all(name in (ignored_files_line(tmp_path) or "") for name in written)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_picture(tmp_path: Path, kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = tmp_path / "x"
    Image.new("RGB", (60, 40)).save(path, kind, exif=exif)
    opened = open_image(Report(path), lambda image: None)
    assert opened is not None and opened[0] == read_image(path).shape[:2]
    assert opened[0] == ((60, 40) if turn > 4 else (40, 60))


def test_heights_in_a_tiff_are_no_picture(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1000.5, np.float32)).save(tmp_path / "dem.tif")
    with pytest.raises(DataError, match="no colours"):
        read_image(tmp_path / "dem.tif")


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {f"model.layers.{name}.mlp.up_proj.weight": torch.zeros(2, 2) for name in names}


def test_a_trainers_state_is_no_weights(tmp_path: Path) -> None:
    torch.save(tensors("0"), tmp_path / "pytorch_model.bin")
    for name in (*STATES, "._pytorch_model.bin", "._x.pth"):
        torch.save({"step": 1}, tmp_path / name)
    assert [path.name for path in weights_files(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="give the folder"):
        weights_files(tmp_path)


def test_a_state_in_safetensors_does_not_hide_the_pickles(tmp_path: Path) -> None:
    torch.save(tensors("0"), tmp_path / "pytorch_model.bin")
    save_file(tensors("0"), tmp_path / "optimizer.safetensors")
    (tmp_path / "._model.safetensors").write_bytes(b"x")
    assert [path.name for path in weights_files(tmp_path)] == ["pytorch_model.bin"]


def test_a_folder_called_as_weights_is_read(tmp_path: Path) -> None:
    inner = tmp_path / "pytorch_model.bin"
    inner.mkdir()
    for n in (1, 2):
        torch.save(tensors(str(n)), inner / f"pytorch_model-0000{n}-of-00002.bin")
    torch.save({"step": 1}, tmp_path / "rng_state_0.pth")
    told: list[str] = []
    assert len(Source.read(tmp_path, FAMILY, told.append).paths) == 2
    assert "pytorch_model.bin/" in told[0]
    (inner / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match="00002-of-00002.bin; download the rest"):
        weights_files(tmp_path)


def test_safetensors_come_first_and_the_rest_is_told(tmp_path: Path) -> None:
    save_file(tensors("0"), tmp_path / "model.safetensors")
    torch.save(tensors("0"), tmp_path / "pytorch_model-00001-of-00001.bin")
    (tmp_path / "pytorch_model.bin").mkdir()
    torch.save(tensors("0"), tmp_path / "pytorch_model.bin" / "pytorch_model.bin")
    told: list[str] = []
    paths = weights_files(tmp_path, told.append)
    assert [path.name for path in paths] == ["model.safetensors"]
    assert "pytorch_model-00001-of-00001.bin" in told[0] and "pytorch_model.bin/" in told[1]


def test_weights_one_folder_deeper_are_named(tmp_path: Path) -> None:
    (tmp_path / "step-500").mkdir()
    save_file(tensors("0"), tmp_path / "step-500" / "model.safetensors")
    with pytest.raises(WeightsError, match="but in step-500/"):
        weights_files(tmp_path)


def test_what_macos_leaves_beside_a_model_is_not_opened(tmp_path: Path) -> None:
    save_file(tensors("0"), tmp_path / "model.safetensors")
    before = FolderWeights(tmp_path).fingerprint
    (tmp_path / "._model.safetensors").write_bytes(b"x")
    assert FolderWeights(tmp_path).fingerprint == before


def test_what_macos_leaves_beside_data_sets_is_none(tmp_path: Path) -> None:
    for folder in ("sem_seg/.ipynb_checkpoints", "sem_seg/__MACOSX", "vqa"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "vqa" / "._llava.json").write_bytes(b"\x00\x05\x16\x07")
    assert read_sem_seg(tmp_path) == ([], [])
    assert read_vqa(tmp_path) == ([], [])


@pytest.mark.parametrize("source", ["./nope", "../nope", "~/nope-at-all", "/nope/x", "C:\\x"])
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # whoever calls it fails
    told: list[str] = []
    with pytest.raises(WeightsError, match="no such folder"):
        weights_files(checkpoint_folder(source, told.append))
    assert not told
