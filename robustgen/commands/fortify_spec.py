"""Which layers of a network a command fortifies, and how."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustgen.fortified import FortifiedNetwork, fortify

__all__ = ["FortifySpec"]


@dataclass(frozen=True)
class FortifySpec:
    """Which layers to fortify and how; see :func:`robustgen.fortify` and :class:`robustgen.FortifiedObjective`."""

    layers: str
    init: str | None = None
    hidden: int | None = None
    activation: str = "leaky_relu"
    decoder_activation: str = "linear"
    input_autoencoder: bool = False
    noise_std: float = 0.1
    noise_at_test: bool = False
    lambda_rec: float = 0.1
    lambda_adv: float = 0.1
    detach_states: bool = False
    freeze_backbone: bool = False

    def fortified(self, network: nn.Module, example: Tensor) -> FortifiedNetwork:
        """The network with its autoencoders, untrained; ``example`` is some of its inputs (N, ...)."""
        return fortify(
            network,
            "auto" if self.layers == "auto" else [name for name in self.layers.split(",") if name],
            example_input=example,
            hidden=self.hidden,
            activation=self.activation,
            decoder_activation=self.decoder_activation,
            noise_std=self.noise_std,
            noise_at_test=self.noise_at_test,
            input_autoencoder=self.input_autoencoder,
            init=self.init,
        )
