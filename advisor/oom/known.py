"""How PyTorch, CUDA, its libraries and operating systems word that memory ran out, as data.

Patterns are for text without white space (`Log`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Memory = Literal[
    "card", "host", "pinned", "killed", "shared", "on-chip", "unified", "size", "run"
]  # fmt: skip

SIZE = r"(\d{1,11}(?:\.\d{1,4})?)(bytes|[KMGT]i?B)"


@dataclass(frozen=True)
class Wording:
    """A message: which memory ran out, who writes it, and whether that is its only cause."""

    memory: Memory
    name: str
    pattern: re.Pattern[str]
    sure: bool = True
    after: re.Pattern[str] | None = None  # must stand in the last frame of the traceback before it


def _w(
    memory: Memory, name: str, pattern: str, sure: bool = True, after: str | None = None
) -> Wording:
    return Wording(memory, name, re.compile(pattern), sure, re.compile(after) if after else None)


# Messages with figures explain the most, so they are preferred.
FIGURED = (
    _w("card", "PyTorch",
       rf"(?:(?:CUDA|HIP|XPU|NPU|MLU|MUSA)outofmemory\.?)?Triedtoallocate{SIZE}(?!on)"),
    _w("size", "PyTorch", r"Triedtoallocatemorethan1EB"),
    _w("card", "PyTorch (cudaMallocAsync)", r"Allocationondevice\d*wouldexceedallowedmemory"),
    _w("unified", "PyTorch on Apple", r"MPSbackendoutofmemory"),
    _w("host", "PyTorch's CPU allocator",
       r"DefaultCPUAllocator:(?:can'tallocatememory|notenoughmemory):youtriedtoallocate"),
    _w("host", "NumPy", rf"Unabletoallocate{SIZE}foranarray"),
    _w("killed", "Linux", r"Outofmemory:Kill(?:ed)?process\d+.{0,60}?total-vm"),
)  # fmt: skip
# Earlier ones go before later ones that match nearby.
BARE = (
    # Inductor tries configurations and leaves out those that need too much: no error.
    _w("on-chip", "Triton", r"outofresource:(?:sharedmemory|tensormemory|threads|registers|triton_)"
       r"(?!.{0,200}?forbenchmarkchoice)"),
    _w("on-chip", "CUDA", r"usestoomuchshareddata|toomanyresourcesrequestedforlaunch"),
    # CUDA says "out of memory" for pinned host memory, too: the function that asked for it tells.
    _w("pinned", "CUDA", r"failedtoalloc\d+bytesonhost|couldnotallocatepinnedhostmemory"
       r"|cudaHostAlloc.{0,40}?outofmemory"),
    _w("pinned", "CUDA", r"CUDAerror:outofmemory|cudaErrorMemoryAllocation", sure=False,
       after=r"pinmemorythread|[.=]pin_memory\("),
    _w("card", "bitsandbytes", r"(?:Error|CUDAerror)outofmemoryatline\d+infile"),
    _w("card", "NCCL", r"Cudafailure(?:\d+)?'outofmemory'|FailedtoCUDA[cm]alloc"),
    _w("card", "a library of the GPU",
       r"(?:CU|HIP|ROC)[A-Z]{2,10}_(?:STATUS_)?ALLOC_FAILED|miopenStatusAllocFailed"),
    # The figures of this message come from NVML, which a MIG instance or an old driver lacks.
    _w("card", "PyTorch, which could not read the card's figures",
       r"NVML_SUCCESS==.{0,80}?INTERNALASSERTFAILEDat.{0,200}?CUDACachingAllocator"),
    _w("card", "HIP on AMD", r"HIP(?:driver)?error:?outofmemory|hipErrorOutOfMemory"),
    _w("card", "SYCL on Intel", r"(?:UR|ZE|PI)(?:_RESULT)?_ERROR_OUT_OF_(?:DEVICE|RESOURCES)"),
    _w("card", "Triton", r"TritonError\[CUDA\]:outofmemory"),
    _w("card", "ONNX Runtime", r"CUDAfailure2:outofmemory"),
    _w("card", "TensorRT", r"CudaRuntime\(outofmemory\)|ErrorCode2:OutOfMemory"),
    _w("card", "CuPy", r"Outofmemoryallocating[\d,]+bytes\(allocatedsofar"),
    _w("card", "Paddle", r"OutofmemoryerroronGPU"),
    _w("card", "vLLM", r"Noavailablememoryforthecacheblocks|KVcacheisneeded,whichislargerthan"
       r"|maximumnumberoftokensthatcanbestoredinKVcache"
       r"|lessthandesiredGPUmemoryutilization"),
    _w("card", "CUDA", r"(?i:CUDA(?:driver)?error:?(?:2at.{0,80}?:)?outofmemory)"
       r"|cudaruntimeerror\(2\)|error=2:outofmemory|\(2vs\.0\)outofmemory"
       r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|cudaMallocfailed:outofmemory"),
    _w("card", "PyTorch", r"torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP)outofmemory"
       r"|GotanOOM,unloading"),
    _w("card", "accelerate", r"Noexecutablebatchsizefound"),
    _w("card", "transformers", r"enoughGPURAMtofit"),
    _w("card", "TensorFlow or JAX", r"OOMwhenallocatingtensor|RESOURCE_EXHAUSTED:Outofmemory"
       r"|RESOURCE_EXHAUSTED:Failedtoallocaterequest"
       r"|\(GPU_\d+_bfc\)ranoutofmemorytryingtoallocate"),
    _w("card", "ExLlama", r"InsufficientVRAM"),
    _w("card", "CUDA.jl", r"OutofGPUmemorytryingtoallocate"),
    _w("card", "DirectML", r"notenoughGPUvideomemoryavailable"),
    # These have other causes as well.
    _w("card", "cuDNN", r"findavalidcuDNNalgorithm|wasunabletofindanengine"
       r"|CUDNN_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR)", sure=False),
    _w("card", "cuBLAS", r"CUBLAS_STATUS_NOT_INITIALIZED", sure=False),
    _w("card", "cuSOLVER", r"CUSOLVER_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR)"
       r".{0,20}calling.{0,3}cusolverDnCreate", sure=False),
    _w("card", "ONNX Runtime", r"BFCArena::AllocateRawInternal.{0,80}?Failedtoallocatememory",
       sure=False),
    _w("unified", "Metal on Apple", r"kIOGPUCommandBufferCallbackErrorOutOfMemory"),
    _w("unified", "PyTorch on Apple", rf"RuntimeError:Invalidbuffersize:{SIZE}"),
    _w("shared", "PyTorch's data loader", r"insufficientsharedmemory\(shm\)|outofsharedmemory"
       r"|killedbysignal:Buserror|unabletowritetofile</torch_"),
    _w("shared", "NCCL", r"(?:creatingsharedmemorysegment|failedtoextend)/dev/shm"),
    _w("shared", "Python", r"Nospaceleftondevice:?.{0,3}/dev/shm"),
    _w("shared", "a launcher", r"(?:exit|return)code[:=]?-7(?!\d)|SIGBUS"
       r"|Buserror\(coredumped\)", sure=False),
    _w("host", "Windows", r"oserror1455|WinError1455|pagingfileistoosmall"),
    _w("host", "Ollama", r"requiresmoresystemmemory\("),
    _w("host", "Kaggle", r"triedtoallocatemorememorythanisavailable"),
    _w("host", "Python", r"(?<!OutOf)MemoryError|std::bad_alloc|Cannotallocatememory"),
    _w("killed", "a container or scheduler", r"OOMKill|oom[-_]kill|usingallavailableRAM"
       r"|noderunninglowonmemory|[Ee]xceeded(?:job)?memorylimit|TERM_MEMLIMIT"
       r"|jobkilled:v?mem\d+\w+exceededlimit|lowonresource:memory"),
    _w("killed", "a launcher", r"(?:exit|return)(?:code|status)[:=]?-9(?!\d)"
       r"|[Ee]xit(?:ed)?(?:with)?(?:\(|(?:code|status)[:=]?)137(?!\d)"
       r"|(?<!via)(?<!viaSignals\.)SIGKILL|killedbysignal:Killed|[Ss]ignal9(?!\d)"
       r"|Killedsignalterminatedprogram|code=killed,status=9", sure=False),
)  # fmt: skip
# Ends of lines with which bash and zsh report a killed process.
KILLED = re.compile(r"(?:^|it/s\]|\?\]|\d\s{1,20}|\s{2,20}|zsh: )[Kk]illed(?::? 9|\s{2,20}\S.*|)$")
OWN = re.compile(r"out of memory while .+, after step \d+|out of memory, (?:see|and no smaller)")
# Texts that only mention a shortage: advice, options, documentation.
ADVICE = re.compile(
    r"(?i)\b(?:if|when|avoid|prevent|may|might|could|can|causes?|reduces?|in case of|leads? to|"
    r"risk|to fix|help)\b.{0,80}(?:out of memory|OutOfMemoryError|SIGKILL|MemoryError)"
)
