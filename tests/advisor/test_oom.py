"""Out-of-memory messages as people paste them: which memory, why, and what is advised."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from advisor.cli.main import app
from advisor.oom.explain import explain
from advisor.oom.log import Log
from advisor.oom.wordings import messages
from advisor.report.oom_text import print_explanation
from advisor.report.text import PlainConsole
from profiles.levers import RELIEFS
from profiles.shortage import Shortage
from profiles.sizes import GIB, MIB
from tests.conftest import tiny_plan

OLD_TAIL = (
    " If reserved memory is >> allocated memory try setting max_split_size_mb to avoid "
    "fragmentation.  See documentation for Memory Management and PYTORCH_CUDA_ALLOC_CONF"
)
NEW_TAIL = (
    " If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation "
    "for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
)
# PyTorch 1.0, 1.4, 1.13, 2.1 and 2.6, on a card that its own tensors fill.
CACHED = (
    "RuntimeError: CUDA out of memory. Tried to allocate 512.00 MiB (GPU 1; 15.90 GiB total "
    "capacity; 14.75 GiB already allocated; 401.56 MiB free; 607.00 KiB cached)"
)
RESERVED = (
    "RuntimeError: CUDA out of memory. Tried to allocate 172.00 MiB (GPU 1; 22.38 GiB total "
    "capacity; 21.40 GiB already allocated; 61.50 MiB free; 21.70 GiB reserved in total by PyTorch)"
)
CAPACTY = (
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a "
    "total capacty of 14.75 GiB of which 235.00 MiB is free. Process 20111 has 14.52 GiB memory in "
    "use. Of the allocated memory 14.06 GiB is allocated by PyTorch, and 330.00 MiB is reserved by "
    "PyTorch but unallocated."
)
CAPACITY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB. GPU 3 has a total "
    "capacity of 23.65 GiB of which 11.00 MiB is free. Including non-PyTorch memory, this process "
    "has 23.60 GiB memory in use. Of the allocated memory 22.90 GiB is allocated by PyTorch, and "
    "194.00 MiB is reserved by PyTorch but unallocated."
)
GRAPHS = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 546.00 MiB. GPU 0 has a total "
    "capacity of 15.77 GiB of which 514.00 MiB is free. Process 562 has 15.25 GiB memory in use. "
    "Of the allocated memory 14.43 GiB is allocated by PyTorch, with 46.00 MiB allocated in "
    "private pools (e.g., CUDA Graphs), and 236.00 MiB is reserved by PyTorch but unallocated."
)
TENSORS = ["tensors"]
CARDS = [  # text, size of the card, causes
    (CACHED, 15.90, TENSORS),
    (RESERVED, 22.38, TENSORS),
    (RESERVED + OLD_TAIL, 22.38, TENSORS),
    (CAPACTY + OLD_TAIL, 14.75, TENSORS),
    (CAPACITY + NEW_TAIL, 23.65, TENSORS),
    (GRAPHS + NEW_TAIL, 15.77, TENSORS),
    # Without its first words, as titles of issues have it.
    (RESERVED.split("memory. ", 1)[1], 22.38, TENSORS),
    # Another process: listed beside this one, of a list in a container, or only as a remainder.
    ("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 47.50 GiB of "
     "which 600.00 MiB is free. Process 77 has 30.10 GiB memory in use. Including non-PyTorch "
     "memory, this process has 16.80 GiB memory in use. Of the allocated memory 16.20 GiB is "
     "allocated by PyTorch, and 120.00 MiB is reserved by PyTorch but unallocated.", 47.5,
     ["other processes", "tensors"]),
    ("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 47.50 GiB of "
     "which 600.00 MiB is free. Process 77 has 40.10 GiB memory in use. Process 78 has 6.80 GiB "
     "memory in use. Of the allocated memory 2.10 GiB is allocated by PyTorch, and 4.30 GiB is "
     "reserved by PyTorch but unallocated.", 47.5, ["other processes", "fragmentation"]),
    ("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 31.75 GiB total capacity; 611.00 MiB "
     "already allocated; 14.00 MiB free; 622.00 MiB reserved in total by PyTorch)", 31.75,
     ["other processes"]),
    # Fragmentation: enough if it were one piece, or too little even so.
    ("CUDA out of memory. Tried to allocate 10.50 GiB (GPU 0; 23.65 GiB total capacity; 1.06 GiB "
     "already allocated; 10.26 GiB free; 12.53 GiB reserved in total by PyTorch)", 23.65,
     ["fragmentation"]),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.50 GiB. GPU 0 has a total "
     "capacity of 31.47 GiB of which 12.73 GiB is free. Including non-PyTorch memory, this process "
     "has 18.73 GiB memory in use. Of the allocated memory 9.08 GiB is allocated by PyTorch, and "
     "9.35 GiB is reserved by PyTorch but unallocated.", 31.47, ["fragmentation"]),
    # Windows' driver had moved a part to host memory already.
    ("CUDA out of memory. Tried to allocate 1002.00 MiB. GPU 0 has a total capacity of 8.00 GiB of "
     "which 0 bytes is free. Of the allocated memory 13.90 GiB is allocated by PyTorch, and "
     "129.00 MiB is reserved by PyTorch but unallocated.", 8, TENSORS),
    # One tensor larger than the card.
    ("CUDA out of memory. Tried to allocate 55.00 GiB. GPU 0 has a total capacty of 12.00 GiB of "
     "which 9.02 GiB is free. Of the allocated memory 984.00 MiB is allocated by PyTorch, and "
     "463.00 MiB is reserved by PyTorch but unallocated.", 12, ["request"]),
    # A size that was computed wrongly.
    ("CUDA out of memory. Tried to allocate 152638.31 GiB. GPU 0 has a total capacity of 79.10 GiB "
     "of which 77.00 GiB is free. Of the allocated memory 1.20 GiB is allocated by PyTorch, and "
     "80.00 MiB is reserved by PyTorch but unallocated.", 79.1, ["request"]),
    # A limit of its own.
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has a total "
     "capacity of 79.10 GiB of which 70.00 GiB is free. 8.00 GiB allowed; Of the allocated memory "
     "7.90 GiB is allocated by PyTorch, and 60.00 MiB is reserved by PyTorch but unallocated.",
     79.1, ["limit"]),
    # More was free than was asked for.
    ("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 6.00 GiB total capacity; 781.00 MiB "
     "already allocated; 3.03 GiB free; 0.80 GiB reserved in total by PyTorch)", 6,
     ["other processes", "refused"]),
    # The last of a card is not given out.
    ("CUDA out of memory. Tried to allocate 32.00 MiB. GPU 0 has a total capacty of 4.00 GiB of "
     "which 41.00 MiB is free. Including non-PyTorch memory, this process has 3.80 GiB memory in "
     "use. Of the allocated memory 3.10 GiB is allocated by PyTorch, and 1.90 MiB is reserved by "
     "PyTorch but unallocated.", 4, TENSORS),
    # Scraps and what is free would do together, neither alone.
    ("CUDA out of memory. Tried to allocate 11.00 GiB (GPU 0; 47.53 GiB total capacity; 34.00 GiB "
     "already allocated; 8.16 GiB free; 38.40 GiB reserved in total by PyTorch)", 47.53,
     ["fragmentation", "tensors"]),
    # NVML's "not available", under WSL.
    ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB of "
     "which 0 bytes is free. Including non-PyTorch memory, this process has 17179869184.00 GiB "
     "memory in use. Of the allocated memory 7.00 GiB is allocated by PyTorch, and 100.00 MiB is "
     "reserved by PyTorch but unallocated.", 8, TENSORS),
    # A MIG instance: NVML says that the process has nothing, and that is no reason for others.
    ("CUDA out of memory. Tried to allocate 1.96 GiB. GPU 3 has a total capacity of 23.43 GiB of "
     "which 210.06 MiB is free. Including non-PyTorch memory, this process has 0 bytes memory in "
     "use. Of the allocated memory 22.41 GiB is allocated by PyTorch, and 206.09 MiB is reserved "
     "by PyTorch but unallocated.", 23.43, TENSORS),
    # The other allocator.
    ("torch.cuda.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of "
     "memory)\nCurrently allocated     : 14.42 GiB\nRequested               : 20.00 MiB\nDevice "
     "limit            : 15.99 GiB\nFree (according to CUDA): 0 bytes\nPyTorch limit (set by "
     "user-supplied memory fraction)\n                        : 17179869184.00 GiB", 15.99,
     TENSORS),
    ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total "
     "capacity of 23.98 GiB of which 1.40 GiB is free. Of the allocated memory 21.65 GiB is "
     "allocated by PyTorch, and 279.00 MiB is reserved by PyTorch but unallocated.", 23.98,
     TENSORS),
]  # fmt: skip


def names(text: str) -> list[str]:
    return [one.name for one in explain(text).causes]


@pytest.mark.parametrize(("text", "card_gib", "causes"), CARDS)
def test_a_message_with_figures_says_why_and_which_plan_to_ask_for(text, card_gib, causes):
    told = explain(text)
    assert (told.memory, names(text), told.exit_code) == ("card", causes, 0)
    assert told.command is not None
    assert told.command.startswith(f"lisa-advise --vram {card_gib:g}GiB")
    # What is known adds up to the card, but for what a driver has moved away.
    filled = sum(part.bytes for part in told.filled)
    assert filled >= 0.999 * card_gib * GIB
    if told.filled[0].bytes <= card_gib * GIB:
        assert filled == pytest.approx(card_gib * GIB, rel=0.002)
    # Levers where tensors fill it, and only there.
    assert bool(told.reliefs) == ("tensors" in causes)


def variants(text: str) -> dict[str, str]:
    """The same message as terminals, launchers and systems change it."""
    wrapped = "\n".join(text[place : place + 71] for place in range(0, len(text), 71))
    return {
        "colours": f"\x1b[1;31m{text[:60]}\x1b[0m{text[60:]}\x1b]0;title\x07",
        "Windows' line ends": f"Traceback\r\n{text}\r\nmore\r\n",
        "a progress bar": f"  3%|▎ | 3/100 [00:01<00:30]\r  4%|▍ | 4/100 [00:01]\r{text}\n",
        "a narrow terminal": f"\n{wrapped}\n",
        "torchrun": "\n".join(f"[rank0]: {line}" for line in ("Traceback:", *wrapped.split("\n"))),
        "srun": "\n".join(f"0: {line}" for line in wrapped.split("\n")),
        "mpirun": "\n".join(f"[1,0]<stderr>:{line}" for line in wrapped.split("\n")),
        "pdsh": "\n".join(f"gpu-node1: {line}" for line in wrapped.split("\n")),
        "kubectl": "\n".join(f"[pod/train-0/main] {line}" for line in wrapped.split("\n")),
        "rich": "\n".join(f"│ {line:<71} │" for line in wrapped.split("\n")),
        "Ray": f"(Worker pid=26572, ip=10.0.0.1) {text}",
        "a container": "\n".join(f"trainer-1  | {line}" for line in wrapped.split("\n")),
        "times": "\n".join(f"2025-11-12T11:25:13.4961658Z {ln}" for ln in wrapped.split("\n")),
        "a quotation": "\n".join(f"> {line}" for line in wrapped.split("\n")),
        "a comment": "\n".join(f"# {line}" for line in wrapped.split("\n")),
        "JSON": json.dumps({"log": text, "stream": "stderr"}),
        "no-break spaces": text.replace(" ", "\u00a0"),
    }


@pytest.mark.parametrize("how", variants(""))
@pytest.mark.parametrize("text", [CACHED, RESERVED, CAPACTY, CAPACITY])
def test_what_a_terminal_or_a_launcher_adds_changes_nothing(text, how):
    plain, told = explain(text), explain(variants(text)[how])
    assert told.model_dump(exclude={"message", "also"}) == plain.model_dump(
        exclude={"message", "also"}
    )
    figures = {"line", "text", "rank"}
    assert told.message is not None and plain.message is not None
    assert told.message.model_dump(exclude=figures) == plain.message.model_dump(exclude=figures)


BARE = [
    ("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronous", "card"),
    ("torch.AcceleratorError: CUDA error: out of memory", "card"),
    ("RuntimeError: CUDA driver error: out of memory", "card"),
    ("RuntimeError: cuda runtime error (2) : out of memory at THCStorage.cu:58", "card"),
    ("RuntimeError: CUDA out of memory", "card"),
    ("torch.OutOfMemoryError: Allocation on device ", "card"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`", "card"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`", "card"),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "card"),
    ("Error out of memory at line 351 in file /src/csrc/pythonInterface.c", "card"),
    ("Error out of memory at line 88 in file D:\\a\\bitsandbytes\\csrc\\ops.cu", "card"),
    ("ng3:30630:30661 [3] include/alloc.h:178 NCCL WARN Cuda failure 'out of memory'", "card"),
    ("node1:1:2 [0] NCCL WARN Cuda failure 2 'out of memory'", "card"),
    ("[3] alloc.h:185 NCCL WARN Failed to CUDA calloc 6291456 bytes", "card"),
    ("RuntimeError: No executable batch size found, reached zero.", "card"),
    ("ValueError: Some modules are dispatched on the CPU or the disk. Make sure you have enough "
     "GPU RAM to fit the quantized model.", "card"),
    ("failed to allocate 17.79G (19104890880 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY", "card"),
    ("ResourceExhaustedError: OOM when allocating tensor with shape[8,512,512]", "card"),
    ("ggml_backend: allocating 1024.00 MiB on device 0: cudaMalloc failed: out of memory", "card"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:73] . DefaultCPUAllocator: can't allocate "
     "memory: you tried to allocate 116813856768 bytes. Error code 12", "host"),
    ("DefaultCPUAllocator: not enough memory: you tried to allocate 113246208 bytes.", "host"),
    ("DefaultCPUAllocator: not enough memory: you tried to allocate 13GB. Buy new RAM!", "host"),
    ("numpy.core._exceptions._ArrayMemoryError: Unable to allocate 12.3 GiB for an array with "
     "shape (40000, 40000) and data type float64", "host"),
    ("Traceback (most recent call last):\n  File x\nMemoryError", "host"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "host"),
    ("OSError: [Errno 12] Cannot allocate memory", "host"),
    ("OSError: The paging file is too small for this operation to complete. (os error 1455)",
     "host"),
    ("El archivo de paginación es demasiado pequeño. (os error 1455)", "host"),
    ("Killed", "killed"),
    ("  38%|███   | 3/8 [00:02<00:03,  1.28it/s]Killed", "killed"),
    ("   0%|      | 0/2 [00:00<?, ?it/s]Killed", "killed"),
    ("/bin/jac-crun: line 6:  3305 Killed                  $ROOT/bin/jac-run \"$@\"", "killed"),
    ("[1]+  Killed                  python train.py", "killed"),
    ("zsh: killed     python train.py", "killed"),
    ("Killed: 9", "killed"),
    ("Process finished with exit code 137 (interrupted by signal 9: SIGKILL)", "killed"),
    ("trainer-1 exited with code 137", "killed"),
    ("ERROR:torch.distributed.elastic: failed (exitcode: -9) local_rank: 0 (pid: 10398)", "killed"),
    ("torch.multiprocessing.spawn.ProcessExitedException: process 0 terminated with signal "
     "SIGKILL", "killed"),
    ("RuntimeError: DataLoader worker (pid 123) is killed by signal: Killed. ", "killed"),
    ("subprocess.CalledProcessError: Command died with <Signals.SIGKILL: 9>.", "killed"),
    ("  reason: OOMKilled", "killed"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have "
     "been OOM Killed.", "killed"),
    ("[ 11.2] Out of memory: Killed process 4242 (python) total-vm:90000000kB, "
     "anon-rss:60000000kB, file-rss:0kB", "killed"),
    ("Your session crashed after using all available RAM.", "killed"),
    ("ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient "
     "shared memory (shm).", "shared"),
    ("RuntimeError: DataLoader worker (pid 46) is killed by signal: Bus error. It is possible that "
     "dataloader's workers are out of shared memory.", "shared"),
    ("triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072, "
     "Hardware limit: 101376. Reducing block sizes or `num_stages` may help.", "on-chip"),
    ("RuntimeError: MPS backend out of memory (MPS allocated: 17.68 GB, other allocations: 3.95 "
     "MB, max allowed: 18.13 GB). Tried to allocate 1024.00 MB on private pool.", "unified"),
    ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate more than 1EB memory.",
     "size"),
    ("RuntimeError: Unable to find a valid cuDNN algorithm to run convolution", "card"),
    ("RuntimeError: GET was unable to find an engine to execute this computation", "card"),
    ("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
     "card"),
    ("HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`", "card"),
    ("RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "
     '"../c10/cuda/CUDACachingAllocator.cpp":1154, please report a bug to PyTorch.', "card"),
    ("CUDA error 2 at ggml-cuda.cu:7233: out of memory", "card"),
    ("CUDA failure 2: out of memory ; GPU=0 ; hostname=a", "card"),
    ("[defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime (out of memory)", "card"),
    ("Check failed: error == cudaSuccess (2 vs. 0)  out of memory", "card"),
    ("THCudaCheck FAIL file=/THCStorage.cu line=41 error=2 : out of memory", "card"),
    ("RuntimeError: Triton Error [CUDA]: out of memory", "card"),
    ("Allocator (GPU_0_bfc) ran out of memory trying to allocate 2.25GiB (rounded to 9)", "card"),
    ("cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,000 bytes (allocated so far: "
     "0 bytes).", "card"),
    ("Out of memory error on GPU 0. Cannot allocate 256.000000MB memory on GPU 0", "card"),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_util`",
     "card"),
    ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", "card"),
    ("There is not enough GPU video memory available!", "card"),
    ("failed to alloc 34359738368 bytes on host: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
     "pinned"),
    ("Caught RuntimeError in pin memory thread for device 0.\n  return data.pin_memory(device)\n"
     "RuntimeError: CUDA error: out of memory", "pinned"),
    # The thread begins by taking the card, and a line that pinned may only have been passed.
    ("Caught RuntimeError in pin memory thread for device 0.\n"
     '  File "torch/utils/data/_utils/pin_memory.py", line 26, in _pin_memory_loop\n'
     '  File "torch/cuda/__init__.py", line 420, in set_device\n'
     "RuntimeError: CUDA error: out of memory", "card"),
    ('  File "train.py", line 5, in step\n    images = images.pin_memory()\n'
     '  File "train.py", line 9, in forward\n    x = self.linear(x)\n'
     "RuntimeError: CUDA error: out of memory", "card"),
    ("Error: model requires more system memory (5.6 GiB) than is available (3.1 GiB)", "host"),
    ("Task was killed due to the node running low on memory.", "killed"),
    ("slurmstepd: error: Job 12 exceeded memory limit (33562812 > 33554432), being killed",
     "killed"),
    ("=>> PBS: job killed: mem 5245kb exceeded limit 5120kb", "killed"),
    ("Command '['python']' returned non-zero exit status -9.", "killed"),
    ("trainer  Exited (137) 3 minutes ago", "killed"),
    ("failed (exitcode: -7) local_rank: 0 (pid: 1234) of binary: /usr/bin/python", "shared"),
    ("Error while creating shared memory segment /dev/shm/nccl-Xb2xNn (size 9637888)", "shared"),
    ("NCCL WARN Error: failed to extend /dev/shm/nccl-abc to 9637892 bytes", "shared"),
    ("RuntimeError: unable to write to file </torch_18692_1954506624>", "shared"),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/sem.mp-abc'", "shared"),
    ("out of resource: tensor memory, Required: 640, Hardware limit: 512", "on-chip"),
    ("ptxas error: Entry function 'k' uses too much shared data (0xc000 bytes)", "on-chip"),
    ("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", "unified"),
    ("out of memory while training, after step 3; details in runs/a b/out-of-memory/001", "run"),
    ("error: out of memory, and no smaller plan is left; tried:", "run"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "memory"), BARE)
def test_which_memory_ran_out(text, memory):
    told = explain(f"epoch 1\n{text}\nbye\n")
    assert told.memory == memory and told.exit_code == 0
    assert told.message is not None and told.message.line >= 2
    assert told.summary and (told.helps or told.reliefs)
    # What the card's levers are good for is not said of other memory.
    assert memory == "card" or not told.reliefs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "hello",
        "{}",
        "{" * 5000,
        "epoch 1/1, loss 0.3",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)",
        "[2023-07-12] [INFO] [launch.py:315:sigkill_handler] Killing subprocess 30746",
        "Unable to shutdown process 7 via 15, forcefully exiting via Signals.SIGKILL",
        "Watchdog caught collective operation timeout; Sending process 7 closing signal SIGTERM",
        "If you run into CUDA out of memory errors, use a smaller batch",
        "--low-vram   to avoid CUDA out of memory",
        "This may lead to a MemoryError on machines with less RAM",
        "no space left on device",
        "process exited with code 1379",
        "the tutorial on killed processes",
        "\udcff\ud800",
    ],
)
def test_what_is_no_such_message_is_an_honest_cannot_tell(text):
    told = explain(text)
    assert (told.memory, told.exit_code) == (None, 3)
    assert told.summary.startswith("cannot tell") and told.command is None


def test_the_process_itself_is_found_in_a_container_s_list():
    told = explain(CAPACTY)  # 14.52 GiB are 14.06 + 330 MiB and the context
    assert names(CAPACTY) == TENSORS
    held = {part.part: part.bytes for part in told.filled}
    assert held["context and libraries"] == pytest.approx(141 * MIB, abs=6 * MIB)


def test_others_come_first_with_their_number_and_what_is_left_beside_them():
    told = explain(CARDS[7][0])
    assert "77 with 30.10 GiB" in told.causes[0].text
    assert "; without them the request would have fitted" in told.causes[0].text
    assert "nvidia-smi" in told.helps[0] and any("--wait-minutes" in one for one in told.helps)
    assert any("--vram 17.39GiB" in one for one in told.helps)


def test_scraps_ask_for_expandable_segments_where_the_system_has_them():
    linux, short = explain(CARDS[10][0]), explain(CARDS[11][0])
    assert "expandable_segments:True" in linux.helps[0]
    assert "; in one piece the request would have fitted" in linux.causes[0].text
    assert "even in one piece 430 MiB would still have been missing" in short.causes[0].text
    windows = explain('  File "C:\\Users\\me\\train.py", line 3\n' + CARDS[10][0])
    assert (
        "max_split_size_mb" in windows.helps[0] and "expandable_segments:" not in windows.helps[0]
    )
    assert windows.command == "lisa-advise --vram 23.65GiB --os windows"


def test_a_card_that_spilled_is_asked_about_as_windows_card():
    told = explain(CARDS[12][0])
    assert "host memory" in told.causes[0].text and told.command is not None
    assert told.command.endswith("--os windows")


def test_what_a_message_leaves_out_is_not_made_up():
    told = explain(
        "XPU out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 15.91 GiB. "
        "Of the allocated memory 14.00 GiB is allocated by PyTorch, and 500.00 MiB is reserved by "
        "PyTorch but unallocated. Please use `empty_cache` to release all unoccupied memory."
    )
    assert [part.part for part in told.filled] == ["tensors", "in the pool, not in use"]
    assert "free" not in told.summary and "only NVIDIA" in told.notes[0]


def test_amd_and_apple_are_told_that_only_nvidia_is_known():
    assert "only NVIDIA" in explain(CARDS[-1][0]).notes[0]
    apple = explain(next(text for text, memory in BARE if memory == "unified"))
    assert "only NVIDIA" in apple.summary and apple.command == "lisa-advise --vram 18.13GiB"


PHASES = [
    ("while loading the model", "model = AutoModel.from_pretrained(name)"),
    ("while loading the model", "engine = deepspeed.initialize(model)\n  self.module.to(device)"),
    ("in the forward pass", "out = model(x)\n  File m.py, line 3, in forward\n  F.linear(x)"),
    ("in the backward pass", "loss.backward()\n  in forward\n  recomputed"),
    ("in the optimizer's step", "optimizer.step()\n  File adamw.py, line 9, in _init_group"),
    ("while answering", "model.generate(**inputs)\n  in forward"),
    ("while evaluating", "in evaluation_loop\n  in forward"),
]


@pytest.mark.parametrize(("phase", "code"), PHASES)
def test_the_traceback_says_what_it_did_and_so_what_helps(phase, code):
    began = "Traceback (most recent call last):\n"
    told = explain(f"{began}  old.backward()\n\n{began}  {code}\n{CAPACITY}")
    assert told.phase == phase
    joined = "\n".join(told.reliefs)
    # A smaller batch does not help what fails while the weights are loaded.
    assert ("micro_batch" in joined) == (
        phase not in ("while loading the model", "while answering")
    )
    assert ("max_new_tokens" in joined) == (phase == "while answering")


def test_levers_come_in_the_house_s_order():
    told = explain(CAPACITY)
    house = [one.text() for one in RELIEFS]
    places = [
        next(n for n, text in enumerate(house) if one.startswith(text)) for one in told.reliefs
    ]
    assert places == sorted(places) and len(places) >= 9
    words = "\n".join(told.reliefs)
    order = ["cached_encoders", "micro_batch=1", "checkpointed_layers=all recomputes",
             "host_embeddings", "quantization=nf4", "optimizer_state", "host_layers=N",
             "lora.rank"]  # fmt: skip
    assert [words.index(one) for one in order] == sorted(words.index(one) for one in order)


def test_the_first_message_of_each_rank_decides_and_the_first_of_all_is_explained():
    lines = [
        "[rank1]: Traceback (most recent call last):",
        "[rank0]: Traceback (most recent call last):",
        f"[rank1]: {CAPACITY}",
        f"[rank0]: {CAPACTY}",
        f"[rank1]: {RESERVED}",
        "[rank0]: NCCL WARN Cuda failure 'out of memory'",
        "E0813 torch/distributed/elastic: failed (exitcode: -9) local_rank: 2",
    ]
    told = explain("\n".join(lines))
    assert told.message is not None and (told.message.rank, told.message.line) == ("1", 3)
    assert [(one.rank, one.line) for one in told.also] == [("0", 4)]
    assert told.further == 3


def test_lines_of_ranks_that_come_mixed_and_cut_are_told_apart():
    first, second = (
        [text[n : n + 50] for n in range(0, len(text), 50)] for text in (CAPACTY, CAPACITY)
    )
    mixed = []
    for place in range(max(len(first), len(second))):
        mixed += [f"[rank0]: {first[place]}"] if place < len(first) else []
        mixed += [f"[rank1]: {second[place]}"] if place < len(second) else []
    told = explain("\n".join(mixed))
    assert told.message is not None and told.message.total_bytes == round(14.75 * GIB)
    assert told.also[0].total_bytes == round(23.65 * GIB)


def test_a_message_with_several_causes_is_hedged_and_what_a_scheduler_says_is_not():
    assert (
        "may have" in explain("Unable to find a valid cuDNN algorithm to run convolution").summary
    )
    assert explain("Bus error (core dumped)").summary.startswith("most likely")
    assert "because host memory" in explain("TERM_MEMLIMIT: job killed").summary


def test_what_is_sure_decides_before_what_is_not():
    told = explain(f"DataLoader worker (pid 1) is killed by signal: Killed.\n{CAPACITY}\n")
    assert told.memory == "card"


def test_figures_decide_before_a_bare_message_of_the_same_memory():
    told = explain(
        f"RuntimeError: CUDA error: out of memory\n\nsecond try\n{'x' * 200}\n{CAPACITY}"
    )
    assert told.causes and told.message is not None and told.message.line == 5


def test_a_configuration_that_inductor_left_out_is_no_error():
    tried = (
        "ERROR:torch._inductor.select_algorithm:Exception No valid triton configs. OutOfMemory: "
        "out of resource: triton_mm Required: 262144 Hardware limit:232448 Reducing block sizes or "
        "`num_stages` may help. for benchmark choice TritonTemplateCaller(/tmp/a.py)"
    )
    assert explain(tried).memory is None
    assert explain(f"{tried}\n{CAPACITY}").memory == "card"


def test_a_message_counts_once():
    assert len(messages(Log.of(f"{CAPACITY + NEW_TAIL}\n"))) == 1
    assert len(messages(Log.of("RuntimeError: CUDA error: out of memory"))) == 1


def test_lisa_train_s_report_is_explained_with_its_own_plan():
    short = Shortage(
        plan=tiny_plan(device="cuda", quantization="nf4", micro_batch=1, effective_batch=1),
        phase="training",
        step=3,
        error=CAPACITY,
        components={"frozen weights": 3 * GIB, "activations kept": 19 * GIB},
    )
    told = explain(short.model_dump_json(indent=2))
    assert told.phase == "while training, after 3 steps" and names(CAPACITY) == TENSORS
    assert any(part.part == "activations kept" for part in told.filled)
    words = "\n".join(told.reliefs)
    assert "checkpointed_layers" in words
    assert "quantization=nf4" not in words and "micro_batch=1" not in words, "nothing is left there"


def test_lisa_train_s_message_names_the_report():
    text = "out of memory while training, after step 3; details in runs/a b/out-of-memory/001"
    assert "explain-oom 'runs/a b/out-of-memory/001/shortage.json'" in explain(text).helps[0]


def run(*arguments: str, text: str | bytes | None = None):
    return CliRunner().invoke(app, ["explain-oom", *arguments], input=text, prog_name="lisa-advise")


def test_a_file_standard_input_and_a_message_give_text_or_one_json_document(tmp_path: Path):
    path = tmp_path / "the log of today.txt"
    path.write_text(CAPACITY)
    result = run(str(path))
    assert result.exit_code == 0 and result.stdout.startswith("GPU 3 ran out of memory: 22 MiB")
    assert "  lisa-advise --vram 23.65GiB   advises a plan that fits\n" in result.stdout
    assert run("-", text=CAPACITY).stdout == run(CAPACITY).stdout == result.stdout
    for words in ("CUDA out of memory", "out of memory", "Killed"):
        assert run(words).stdout == run("-", text=words).stdout != ""
    assert "no such file" in run("out of memory.log").stderr
    assert "no such file" in run("runs/Killed").stderr
    assert "no such file" in run("Kiled").stderr
    for words in ("nothing that anybody knows", "RuntimeError: shape mismatch", "loss 0.3", ""):
        assert run(words).exit_code == 3 and run(words).stdout.startswith("cannot tell")
    for absent in ("my train.log", "runs/my run", "C:\\my run"):
        assert "no such file" in run(absent).stderr and run(absent).exit_code == 2
    assert "what filled the card" in run("Tried to allocate 2.00 GiB").stdout
    document = json.loads(run(str(path), "--json").stdout)
    assert document["memory"] == "card" and document["causes"][0]["name"] == "tensors"
    unknown = run("-", "--json", text="hello")
    assert unknown.exit_code == 3 and json.loads(unknown.stdout)["memory"] is None


def test_the_example_in_the_docs_is_what_it_prints():
    page = (Path(__file__).parents[2] / "docs" / "advice.md").read_text(encoding="utf-8")
    example = page.split("lisa-advise explain-oom -\n")[1].split("```")[0]
    text = f"Traceback (most recent call last):\n  AutoModel.from_pretrained(name)\n{CAPACTY}"
    out = io.StringIO()
    print_explanation(explain(text), PlainConsole(file=out, width=120))
    assert out.getvalue().startswith(example.rstrip())


def test_a_windows_shell_s_utf_16_is_read(tmp_path: Path):
    path = tmp_path / "train.log"
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_bytes(f"épuisé\r\n{CAPACITY}\r\n".encode(encoding))
        assert run(str(path)).exit_code == 0


def test_only_the_ends_of_a_long_log_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("advisor.cli.explain_oom.ENDS", 1 << 20)
    path = tmp_path / "train.log"
    with path.open("wb") as file:
        file.write(b"begin\n")
        file.truncate(6 << 30)  # holes: a log of 6 GiB
        file.seek(0, os.SEEK_END)
        file.write(f"\n{CAPACITY}\n".encode())
    result = run(str(path))
    assert result.exit_code == 0 and "only the first and the last 1 MiB were read" in result.stdout
    long = ("x" * 999 + "\n") * 2000
    middle = f"{long}{CAPACITY}\n{long}"
    assert run("-", text=middle).exit_code == 3
    assert run("-", text=middle + CAPACITY).exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of a Unix")
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "is a pipe"), (tmp_path, "is a directory"),
                        (Path("/dev/zero"), "is a device"),
                        (tmp_path / "absent", "no such file")):  # fmt: skip
        result = run(str(path))
        assert result.exit_code == 2 and words in result.stderr and result.stdout == ""


def test_nothing_in_a_log_controls_the_terminal():
    hostile = f"[bold]\x9b31m\u202e [rank0] {RESERVED} \x1b]8;;http://x\x07\u2028"
    assert run("-", text=hostile).exit_code == 0
    shown = run("-", text=hostile).stdout
    assert all(one.isprintable() or one == "\n" for one in shown)


PIECES = [text for text, *_ in CARDS] + [text for text, _ in BARE]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(PIECES), st.text(max_size=40), st.sampled_from(["\x1b[", "9" * 40])
        ),
        max_size=6,
    ),
    st.integers(0, 400),
    st.integers(0, 400),
)
def test_whatever_is_pasted_is_answered(pieces, start, length):
    text = "\n".join(piece[start % (len(piece) + 1) :][: length + 1] for piece in pieces)
    told = explain(text)
    assert told.exit_code in (0, 3)
    out = io.StringIO()
    print_explanation(told, PlainConsole(file=out, width=80))
    assert out.getvalue().strip()
    json.dumps(told.model_dump(mode="json"))
