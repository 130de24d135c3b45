"""Passes of a detector's networks: number format, parts of a fixed size, repeatable kernels."""

from contextlib import nullcontext

import torch

from qadprep.errors import UserError

PRECISIONS = ("fp32", "fp16", "bf16")


class Passes:
    """How a detector runs its networks on a device.

    precision: "fp32", the default everywhere, gives the same faces on every device up to rounding. "fp16" and
        "bf16" compute the convolutions at half the size (torch.autocast), on CUDA only.
    padded: every pass has the same number of inputs, the last one filled up with zeros. The kernels that CUDA picks
        depend on the shape, and so would the last bits of a face on what else is in the call.

    Raises UserError for a precision that is not known or that the device is not asked to do.
    """

    def __init__(self, device: torch.device, precision: str, padded: bool) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        if precision != "fp32" and device.type != "cuda":
            raise UserError(f"precision {precision} needs a CUDA device, got {device}: use --precision fp32")
        self.device = device
        self.padded = padded
        self._half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)

    def ready(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network in evaluation mode on the device, channels last."""
        # Channels last takes a quarter off the time per frame on the CPU; faces move by less than 1e-4 px.
        return network.eval().to(self.device, memory_format=torch.channels_last)

    def __call__(self, network: torch.nn.Module, inputs: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
        """One pass. inputs: float32 (n, 3, height, width) on the device, n of at least 1 and up to `most`.

        Returns the network's outputs, float32 on the CPU, of the n inputs.
        """
        n = len(inputs)
        if self.padded and n < most:
            inputs = torch.cat([inputs, inputs.new_zeros(most - n, *inputs.shape[1:])])
        half = torch.autocast(self.device.type, self._half) if self._half else nullcontext()
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        # On CUDA: full float32 and repeatable kernels, as on the CPU. Without effect there.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False), half:
            outputs = network(inputs)
        return tuple(output[:n].float().cpu() for output in outputs)
