"""Exponential moving average of a model's weights, in fp32.

    average <- decay * average + (1 - decay) * weights        after every optimiser step; at first average = weights

Weights and BatchNorm's running statistics are averaged, so that the statistics belong to the averaged weights;
what counts in integers is copied. The average is kept as tensors beside the model, not as a second model:
``torch.optim.swa_utils.AveragedModel`` deep-copies the network, and the hooks that read its taps would go on to
write into the first one. The update itself is torch's own function for that class.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Average of every floating-point entry of ``model.state_dict()``; begins at the present weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._mix = get_ema_multi_avg_fn(decay)
        self._present = model.state_dict()  # views that see every change in place; asking anew costs each step
        self._average = {
            name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).clone()
            if tensor.is_floating_point()
            else tensor.detach().clone()
            for name, tensor in self._present.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average; call it after each optimiser step."""
        present = self._present
        floating = [name for name, tensor in self._average.items() if tensor.is_floating_point()]
        averages = [self._average[name] for name in floating]
        self._mix(averages, [present[name].to(self._average[name].dtype) for name in floating], None)
        for name, tensor in self._average.items():
            if not tensor.is_floating_point():
                tensor.copy_(present[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; after, bit for bit its own weights again."""
        own = {name: tensor.detach().clone() for name, tensor in self._present.items()}
        try:
            self._fill(self._average)
            yield
        finally:
            self._fill(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged entries by name, on the model's device; :meth:`load_state_dict` reads them back."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue an average. Raises ValueError when the names are not those of the model."""
        if state.keys() != self._average.keys():
            raise ValueError(f"got {len(state)} averaged tensors, expected {len(self._average)} of the model's names")
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._present.items():
            tensor.copy_(tensors[name])
