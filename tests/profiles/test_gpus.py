"""The GPU catalogue: plausible figures, and names that resolve to the card that is meant."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiles.gpus import GpuProfile, find_gpu, find_gpus, gpu_by_nvml, gpus

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
EVERY = pytest.mark.parametrize("card", gpus().values(), ids=gpus())
HALVED = ("NVIDIA A10G", "NVIDIA L20", "NVIDIA L40")
CAPABILITIES = {(6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0),
                (10, 3), (12, 0)}  # fmt: skip


def test_the_catalogue_is_broad_and_names_each_card_once():
    cards = gpus().values()
    assert len(cards) >= 75
    assert len({(card.name, card.memory_gb) for card in cards}) == len(cards)
    assert len({card.title for card in cards}) == len(cards)
    assert sum("Laptop GPU" in card.name for card in cards) >= 15


def test_the_file_ships_with_the_package():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert any(fnmatch("gpus.toml", glob.removeprefix("**/"))
               for glob in setup["package-data"]["profiles"])  # fmt: skip


@EVERY
def test_every_card_is_plausible(card):
    assert 0.9 <= card.visible_mib / (card.memory_gb * 1024) <= 1.0
    assert card.visible_bytes == card.visible_mib * MIB
    assert card.compute_capability in CAPABILITIES
    assert (card.bf16_tflops is not None) == (card.compute_capability >= (8, 0))
    assert card.bf16_tflops in (None, card.fp16_tflops)
    assert 80 <= card.bandwidth_gb_s <= 8000
    assert 1 <= card.fp32_tflops <= 130
    assert card.pcie_gb_s in (6, 12, 25, 50) or "NVLink-C2C" in card.source
    assert card.pcie_gb_s < card.bandwidth_gb_s
    assert card.source


@EVERY
def test_tensor_rates_are_the_dense_ones_of_their_family(card):
    """A sparse rate, or one that accumulates in fp16, is twice the figure and stands out here."""
    ratio = card.fp16_tflops / card.fp32_tflops
    generation = card.compute_capability
    if "GTX" in card.name or generation < (7, 0):
        expected = 1, 1
    elif "GeForce" in card.name:
        cut = " 5090 D" in card.name  # for export
        expected = (4, 4) if generation == (7, 5) else (1.41, 1.42) if cut else (2, 2)
    elif generation < (8, 0):
        expected = 7.2, 8.1
    elif "H20" in card.name and "H200" not in card.name:
        expected = 3.7, 3.8
    elif generation in ((8, 0), (9, 0)):
        expected = 13.5, 16.2
    elif generation < (12, 0) and generation > (9, 0):
        expected = 30, 32
    else:
        expected = (2, 2.3) if card.name in HALVED else (3.9, 4.1)
    low, high = expected
    assert 0.98 * low <= ratio <= 1.02 * high


@pytest.mark.parametrize(
    ("key", "dtype", "tflops"),
    [
        ("rtx-2080-ti-11gb", "fp16", 53.8),
        ("rtx-3070-8gb", "bf16", 40.6),
        ("rtx-3080-10gb", "fp16", 59.5),
        ("rtx-3090-24gb", "bf16", 71),
        ("rtx-4080-16gb", "bf16", 97.5),
        ("rtx-4090-24gb", "bf16", 165.2),
        ("rtx-5090-32gb", "bf16", 209.5),
        ("rtx-a6000-48gb", "bf16", 154.8),
        ("rtx-6000-ada-48gb", "bf16", 364.2),
        ("rtx-pro-6000-96gb", "bf16", 503.8),
        ("titan-rtx-24gb", "fp16", 130.5),
        ("t4-16gb", "fp16", 65),
        ("v100-sxm2-16gb", "fp16", 125),
        ("a100-sxm4-40gb", "bf16", 312),
        ("a100-sxm4-40gb", "fp32", 19.5),
        ("h100-sxm-80gb", "bf16", 989.4),
        ("gtx-1080-ti-11gb", "fp16", 11.34),
        ("p100-pcie-16gb", "fp16", 9.5),
    ],
)
def test_rates_agree_with_the_whitepapers(key, dtype, tflops):
    assert gpus()[key].rate_flops(dtype) == pytest.approx(tflops * 1e12, rel=0.01)


def test_a_rate_that_a_card_lacks_is_an_error():
    with pytest.raises(ValueError, match=r"Tesla T4 \(16 GB\) does not compute in bf16"):
        find_gpu("T4").rate_flops("bf16")
    with pytest.raises(ValueError, match="unknown dtype 'int8'; known: bf16, fp16, fp32"):
        find_gpu("T4").rate_flops("int8")


@pytest.mark.parametrize(
    ("key", "mib"),
    [
        ("rtx-3060-12gb", 12288),
        ("rtx-4090-24gb", 24564),
        ("rtx-5090-32gb", 32607),
        ("t4-16gb", 15360),
        ("l4-24gb", 23034),
        ("a100-sxm4-80gb", 81920),
        ("h100-sxm-80gb", 81559),
        ("h200-141gb", 143771),
    ],
)
def test_visible_memory_is_what_nvidia_smi_reports(key, mib):
    card = gpus()[key]
    assert (card.visible_mib, card.visible_known) == (mib, True)


@EVERY
def test_key_name_and_title_find_their_card(card):
    assert find_gpu(card.key) is card
    assert find_gpu(card.title) is card
    assert find_gpu(card.name).name == card.name
    assert find_gpu(card.name.lower().replace(" ", "")).name == card.name
    for alias in card.aliases:
        assert find_gpu(f"{alias} {card.memory_gb:g}GB").memory_gb == card.memory_gb


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("RTX 3060 12GB", "rtx-3060-12gb"),
        ("RTX 3060 12 GiB", "rtx-3060-12gb"),
        ("3060", "rtx-3060-8gb"),
        ("rtx3060", "rtx-3060-8gb"),
        ("RTX-3060", "rtx-3060-8gb"),
        ("3060 ti", "rtx-3060-ti-8gb"),
        ("3060 mobile", "rtx-3060-laptop-6gb"),
        ("3080", "rtx-3080-10gb"),
        ("3080 laptop", "rtx-3080-laptop-8gb"),
        ("RTX 3080 Laptop GPU 16GB", "rtx-3080-laptop-16gb"),
        ("3050 laptop 6gb", "rtx-3050-laptop-6gb"),
        ("4070 ti", "rtx-4070-ti-12gb"),
        ("4070 ti super", "rtx-4070-ti-super-16gb"),
        ("4070 super", "rtx-4070-super-12gb"),
        ("RTX 4060 Ti 16 GB", "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti-8gb"),
        ("5070Ti", "rtx-5070-ti-16gb"),
        ("gtx 1060 6gb", "gtx-1060-6gb"),
        ("GTX 1060", "gtx-1060-3gb"),
        ("2070 max-q", "rtx-2070-max-q-8gb"),
        ("2070 laptop", "rtx-2070-max-q-8gb"),
        ("A2000 12GB", "rtx-a2000-12gb"),
        ("a6000", "rtx-a6000-48gb"),
        ("RTX 6000 Ada", "rtx-6000-ada-48gb"),
        ("RTX PRO 4500", "rtx-pro-4500-32gb"),
        ("rtx pro 6000 max-q", "rtx-pro-6000-max-q-96gb"),
        ("T4", "t4-16gb"),
        ("P100", "p100-pcie-16gb"),
        ("V100 32GB", "v100-pcie-32gb"),
        ("A10", "a10-24gb"),
        ("A10G", "a10g-24gb"),
        ("a10g 24gb", "a10g-24gb"),
        ("a100", "a100-pcie-40gb"),
        ("a100 80gb", "a100-pcie-80gb"),
        ("A100 SXM 80g", "a100-sxm4-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("h100", "h100-pcie-80gb"),
        ("h100 94gb", "h100-nvl-94gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("GH200 96GB", "gh200-96gb"),
        ("L40S", "l40s-48gb"),
        ("a100-40", "a100-pcie-40gb"),
        ("A100 80", "a100-pcie-80gb"),
        ("3060 (12)", "rtx-3060-12gb"),
        ("3060-12", "rtx-3060-12gb"),
        ("rtx 4090 24", "rtx-4090-24gb"),
        ("3080 mobile 16", "rtx-3080-laptop-16gb"),
        ("4080s", "rtx-4080-super-16gb"),
        ("4070 ti s", "rtx-4070-ti-super-16gb"),
        ("4060m", "rtx-4060-laptop-8gb"),
        ("3090ti", "rtx-3090-ti-24gb"),
        ("gtx 1660 super", "gtx-1660-super-6gb"),
        ("super 4070 ti", "rtx-4070-ti-super-16gb"),
        ("laptop 4090", "rtx-4090-laptop-16gb"),
        ("P100 12GB", "p100-pcie-12gb"),
        ("H800", "h800-sxm-80gb"),
        ("RTX PRO 5000", "rtx-pro-5000-48gb"),
        ("RTX PRO 5000 72GB", "rtx-pro-5000-72gb"),
        # As shops, clouds and programs write them.
        ("ASUS ROG Strix RTX 4090 OC", "rtx-4090-24gb"),
        ("MSI GeForce RTX 3060 Ventus 2X 12G", "rtx-3060-12gb"),
        ("ASUS Dual RTX 3060 12GB", "rtx-3060-12gb"),
        ("[GeForce RTX 3060 Mobile / Max-Q] (rev a1)", "rtx-3060-laptop-6gb"),
        ("NVIDIA GeForce RTX 3090 Founders Edition", "rtx-3090-24gb"),
        ("Colab T4", "t4-16gb"),
        ("\u82f1\u4f1f\u8fbe RTX4090 24G\u663e\u5b58", "rtx-4090-24gb"),
        ("\uff32\uff34\uff38\u3000\uff14\uff10\uff19\uff10", "rtx-4090-24gb"),
        ("|   0  NVIDIA GeForce RTX 4090   Off |   00000000:01:00.0  On |  Off |", "rtx-4090-24gb"),
        ("GPU 0: Tesla T4 (UUID: GPU-1b2c3d4e-aaaa-bbbb-cccc-1)", "t4-16gb"),
        ("0, NVIDIA GeForce RTX 3060, 12288 MiB, 5 MiB", "rtx-3060-12gb"),
        ("RTX 3060 12288MiB", "rtx-3060-12gb"),
        ("NVIDIA Corporation GA104GL [RTX A4000] (rev a1)", "rtx-a4000-16gb"),
    ],
)
def test_what_people_write_finds_the_card(text, key):
    assert find_gpu(text).key == key


@pytest.mark.parametrize(
    ("text", "key", "mib"),
    [
        ("2080 ti 22", "rtx-2080-ti-22gb", 22528),
        ("RTX 4090 48GB", "rtx-4090-48gb", 49128),
        ("NVIDIA GeForce RTX 4090, 49140 MiB", "rtx-4090-48gb", 49128),
        ("rtx-3080-20gb", "rtx-3080-20gb", 20480),
    ],
)
def test_a_card_with_more_memory_soldered_to_it_is_the_same_card(text, key, mib):
    card = find_gpu(text)
    assert (card.key, card.visible_mib, card.visible_known) == (key, mib, False)
    sold = find_gpu(card.name)
    assert card.memory_gb > sold.memory_gb and card.bandwidth_gb_s == sold.bandwidth_gb_s
    assert find_gpu(card.key) == card  # as commands name it


@pytest.mark.parametrize("number", ["3060", "3070", "3080", "4060", "4070", "4080", "4090", "5070"])
def test_a_bare_number_is_the_plain_desktop_card(number):
    assert find_gpu(number).name == f"NVIDIA GeForce RTX {number}"
    assert find_gpu(number).memory_gb == min(
        card.memory_gb for card in gpus().values() if card.name.endswith(f"RTX {number}")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "RTX 3060 24GB",
            "'RTX 3060 24GB': no such card is sold with 24 GB; "
            "did you mean RTX 3060 (8 GB) or RTX 3060 (12 GB)?",
        ),
        (
            "rtx 3050 4gb",
            "'rtx 3050 4gb': only a laptop's is known with 4 GB; did you mean RTX 3050 Laptop GPU ",
        ),
        ("2080 ti 21", "'2080 ti 21': no such card is sold with 21 GB"),
        ("RTX 9999", "unknown GPU 'RTX 9999'"),
        ("RTX 3060 Tie", "unknown GPU 'RTX 3060 Tie'; did you mean RTX 3060 Ti or RTX 3060?"),
        ("4600", "unknown GPU '4600'; did you mean RTX 4060?"),
        ("rtx3600", "unknown GPU 'rtx3600'; did you mean RTX 3060?"),
        ("RTX 3061", "unknown GPU 'RTX 3061'; did you mean RTX 3060?"),
        ("RTX 3061 12GB", "unknown GPU 'RTX 3061 12GB'; did you mean RTX 3060 (12 GB)?"),
        ("RTX 3061-12", "unknown GPU 'RTX 3061-12'; did you mean RTX 3060 (12 GB)?"),
        ("5080 super", "unknown GPU '5080 super'; did you mean RTX 5080?"),
        ("4080D", "unknown GPU '4080D'; did you mean RTX 4080?"),
        ("RTX A6000 Laptop", "unknown GPU 'RTX A6000 Laptop'; did you mean RTX A"),
        ("RTX 3060 9999 MiB", "unknown GPU 'RTX 3060 9999 MiB'"),
        (
            "A100 MIG 3g.20gb",
            "'A100 MIG 3g.20gb' is a MIG instance; give the memory that "
            "nvidia-smi says it has: --vram 19GiB",
        ),
        (
            "GRID T4-16Q",
            "'GRID T4-16Q' is a virtual GPU; give the memory that nvidia-smi says it "
            "has: --vram 16GiB",
        ),
        ("GeForce RTX 208...", "'GeForce RTX 208...' is cut off; nvidia-smi -L prints the whole"),
        ("4050", "unknown GPU '4050'; did you mean RTX 4050 Laptop GPU?"),
        ("GTX 3060", "unknown GPU 'GTX 3060'; did you mean RTX 3060?"),
        ("rtx 1660", "unknown GPU 'rtx 1660'; did you mean GTX 1660?"),
        ("Radeon", "'Radeon' is a GPU of AMD; only NVIDIA's are known"),
        ("A", "unknown GPU 'A'"),
        (
            "RTX 6000",
            "'RTX 6000' may be any of 5 GPUs; did you mean Quadro RTX 6000 or RTX 6000 Ada",
        ),
        ("laptop", "'laptop' may be any of "),
        ("rtx", "'rtx' may be any of "),
        ("", "no GPU is named by ''"),
        (" - ", "no GPU is named by ' - '"),
        ("NVIDIA GeForce", "no GPU is named by 'NVIDIA GeForce'"),
        ("12 GB", "no GPU is named by '12 GB'; a card of that size is --vram 12GiB"),
    ],
)
def test_what_names_no_card_is_an_error_that_says_what_was_got(text, message):
    with pytest.raises(ValueError) as caught:
        find_gpu(text)
    assert str(caught.value).startswith(message)
    assert str(caught.value).count(" or ") <= 2, "three names at most"


def label(card: GpuProfile) -> str:
    return card.title.rsplit(" (", 1)[0]


def answer(text: str) -> str:
    """The card's name, or the error."""
    try:
        return label(find_gpu(text))
    except ValueError as error:
        return str(error)


LABELS = list(dict.fromkeys(label(card) for card in gpus().values() if not card.rare))
NUMBERED = [one for one in LABELS if re.search(r"\b\d{4}\b", one)]


@pytest.mark.parametrize("name", LABELS)
def test_how_a_name_is_written_does_not_matter(name):
    words = name.split()
    for text in (name.lower(), name.replace(" ", ""), name.replace(" ", "-"), f"NVIDIA {name}",
                 f"GeForce {name}", name.replace("Laptop GPU", "mobile"),
                 name.replace(" SUPER", "s")):  # fmt: skip
        assert answer(text) == name
    if "Max-Q" not in name:
        assert name in answer(" ".join(reversed(words)))


@pytest.mark.parametrize("name", NUMBERED)
def test_a_slip_of_the_keyboard_is_answered_with_the_card(name):
    number = re.search(r"\d{4}", name)[0]
    slips = {number[:n] + number[n + 1] + number[n] + number[n + 2 :] for n in range(3)}
    slips |= {number[:n] + number[n] + number[n:] for n in range(4)}
    wrong = [name.replace(number, slip) for slip in slips - {number}]
    wrong += [name.replace(*pair) for pair in (("Ti", "Tie"), ("Ti", "it"), ("SUPER", "SUPR"),
              ("Laptop", "Latop"), ("RTX", "RXT"), ("RTX", "RT"), ("GTX", "GX"))
              if pair[0] in name]  # fmt: skip
    for text in wrong:
        assert "did you mean" in answer(text) and name in answer(text), text
    if "GB" in name:  # of which there is one of another size
        return
    # The first suggestion, but where another card is as near: Ti and SUPER.
    first = sum(f"did you mean {name}" in answer(text) for text in wrong)
    assert first >= 0.7 * len(wrong)


@pytest.mark.parametrize("text", ["M40", "K80", "980 Ti", "H900", "L30", "B400", "GT 1030"])
def test_another_card_that_is_not_listed_is_no_slip(text):
    assert answer(text) == f"unknown GPU '{text}'"


@pytest.mark.parametrize(
    ("text", "count", "key"),
    [
        ("2x A100 40GB", 2, "a100-pcie-40gb"),
        ("2 x RTX 3090", 2, "rtx-3090-24gb"),
        ("2xRTX3090", 2, "rtx-3090-24gb"),
        ("RTX 3090 x2", 2, "rtx-3090-24gb"),
        ("3090*4", 4, "rtx-3090-24gb"),
        ("2*3090", 2, "rtx-3090-24gb"),
        ("8\u00d7H100", 8, "h100-pcie-80gb"),
        ("1x T4", 1, "t4-16gb"),
        ("dual 3090", 2, "rtx-3090-24gb"),
        ("4 A100s", 4, "a100-pcie-40gb"),
        ("2 4080s", 2, "rtx-4080-super-16gb"),
        ("Kaggle T4x2", 2, "t4-16gb"),
        ("RTX 3060 12GBx2", 2, "rtx-3060-12gb"),
        ("GTX1080", 1, "gtx-1080-8gb"),
        ("RTX 3060 12GB", 1, "rtx-3060-12gb"),
        ("RTX 3060, 12GB", 1, "rtx-3060-12gb"),
        ("RTX 3090, RTX 3090", 2, "rtx-3090-24gb"),
        ("2x RTX 3090 + 3090", 3, "rtx-3090-24gb"),
    ],
)
def test_a_count_is_told_from_the_name(text, count, key):
    found, cards = find_gpus(text)
    assert (found, cards[0]) == (count, gpus()[key])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2x RTX 4600", "unknown GPU 'RTX 4600'; did you mean RTX 4060?"),
        ("0x T4", "got 0 cards; allowed: 1 to 64"),
        ("1000x T4", "got 1000 cards; allowed: 1 to 64"),
        ("RTX 3090 x 65", "got 65 cards; allowed: 1 to 64"),
        ("2x MI300X", "'MI300X' is a GPU of AMD"),
        ("4x", "'4x' is a number without a name; give one such as '2x RTX 3090'"),
        (" 0 x ", "is a number without a name"),
        ("RTX 3090, RTX 4090", "cards that differ: one plan runs on all"),
        ("RTX 4090 + 2x 3090", "the weakest decides; give '3x RTX 3090 (24 GB)'"),
        ("RTX 4090 and RTX 3060 12GB", "give '2x RTX 3060 (12 GB)'"),
        ("64x T4, T4", "got 65 cards"),
    ],
)
def test_a_count_of_something_else_is_an_error(text, words):
    with pytest.raises(ValueError) as caught:
        find_gpus(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text", ["GB10", "NVIDIA DGX-Spark", "Jetson AGX Orin", "orin", "jetson orin nano 8GB"]
)
def test_what_has_no_memory_of_its_own_is_not_taken_for_a_slip(text):
    assert answer(text).startswith(f"{text!r} shares its machine's memory; lisa-advise there")


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("MI300X", "AMD"),
        ("mi250", "AMD"),
        ("rx 7900", "AMD"),
        ("RX 7900 XTX", "AMD"),
        ("7900xtx", "AMD"),
        ("Radeon Pro W7900", "AMD"),
        ("m2 max", "Apple"),
        ("Apple M3", "Apple"),
        ("M4-Pro", "Apple"),
        ("Arc A770", "Intel"),
        ("b580", "Intel"),
        ("Intel Data Center GPU Max 1550", "Intel"),
        ("Gaudi 3", "Intel"),
        ("TPU v5e", "Google"),
        ("9070 XT", "AMD"),
        ("Ascend 910B", "Huawei"),
        ("\u6607\u817e910B", "Huawei"),
        ("MLU370", "Cambricon"),
        ("MTT S4000", "Moore Threads"),
    ],
)
def test_other_makers_are_named(text, maker):
    assert answer(text) == f"{text!r} is a GPU of {maker}; only NVIDIA's are known"


@pytest.mark.parametrize(
    ("name", "mib", "key"),
    [
        ("NVIDIA GeForce RTX 3060", 12288, "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3060", 8191, "rtx-3060-8gb"),
        ("GeForce RTX 3060", 12053, "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3060", None, "rtx-3060-8gb"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", 6144, "rtx-3060-laptop-6gb"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 16384, "rtx-3080-laptop-16gb"),
        ("NVIDIA GeForce RTX 2080 Ti", 22 * 1024, "rtx-2080-ti-11gb"),
        ("Tesla T4", 15109, "t4-16gb"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-pcie-80gb"),
        ("NVIDIA A100-SXM4-40GB", 40536, "a100-sxm4-40gb"),
    ],
)
def test_a_probed_card_is_found_by_name_and_memory(name, mib, key):
    card = gpu_by_nvml(name, None if mib is None else mib * MIB)
    assert card is gpus()[key]


@pytest.mark.parametrize(
    "name",
    ["unknown GPU", "", "RTX 3060", "NVIDIA GeForce RTX 9999", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)
def test_a_probed_card_that_is_not_listed_is_none(name):
    assert gpu_by_nvml(name, 8 * 2**30) is None


def test_a_profile_is_frozen_and_refuses_what_it_does_not_know():
    card = find_gpu("T4")
    with pytest.raises(ValidationError):
        card.memory_gb = 32
    for change in ({"sparse_tflops": 130}, {"memory_gb": 0}, {"compute_capability": [7]}):
        with pytest.raises(ValidationError):
            GpuProfile.model_validate(card.model_dump() | change)
