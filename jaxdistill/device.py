"""The kind of device a program is traced for: those here, or, where a plan compiles for others, those it describes.

Choices that differ between platforms ask here and not `jax.default_backend()`, which knows the machine alone. A plan
says what it compiles for as JAX does, by the abstract mesh of the described devices.
"""

import jax


def platform() -> str:
    """One of "cpu", "gpu" and "tpu"."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if described is None else described.platform


def kind() -> str:
    """As `jax.Device.device_kind` has it: "TPU v5", "NVIDIA H200"."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if described is None else described.device_kind
