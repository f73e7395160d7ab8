"""XLA flags for tests: programs are small and run a few times, so compiling is most of the work."""

from importlib.metadata import version

# XLA's older way of generating code, which takes half the time to compile; jaxlib 0.12 aborts on it
OLD_EMITTERS = (
    ["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []
)
QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # one module for LLVM, not a module for each thread: four fifths of the processor time
    "--xla_cpu_parallel_codegen_split_count=1",
    *OLD_EMITTERS,
]


def flags(devices: int, quick: bool = True) -> str:
    """XLA_FLAGS of a process that pretends to have so many devices; not `quick`: a user's."""
    pretended = f"--xla_force_host_platform_device_count={devices}"
    return " ".join([pretended, *QUICK] if quick else [pretended])
