"""An attack made of another one, whose common settings are its own."""

from dataclasses import dataclass, field, fields

from robustgen.attacks.base import Attack

__all__ = ["AroundAttack"]


@dataclass(frozen=True, kw_only=True)
class AroundAttack(Attack):
    """Takes norm, bounds and the other common settings over from ``attack``; a subclass may take its eps over too.

    What it takes over is declared with ``field(init=False)``.
    """

    attack: Attack
    norm: str = field(init=False)
    targeted: bool = field(init=False)
    bounds: tuple[float, float] = field(init=False)
    early_stop: bool = field(init=False)
    seed: int = field(init=False)
    votes: int = field(init=False)

    def __post_init__(self) -> None:
        own = {f.name for f in fields(self) if f.init}
        for common in fields(Attack):
            if common.name not in own:
                object.__setattr__(self, common.name, getattr(self.attack, common.name))
