"""A method: the parts that turn a batch into ``.grad``."""

from dataclasses import dataclass, field, fields, is_dataclass

from targetprop.decoders import Denoising, DirectFeedback, NoDecoder, Objective
from targetprop.influence import Influence
from targetprop.inversion import Difference, InputSpace, Inversion
from targetprop.layers import Cut
from targetprop.output_target import GradientStep, OutputTarget
from targetprop.settings import check_types
from targetprop.targets import Propagation
from targetprop.updates import Gradient, Update


@dataclass(frozen=True)
class Method:
    """A complete recipe: everything that turns a batch into ``.grad``.

    Attributes:
        name: what it is called in reports.
        cut: where layers begin and end.
        output_target: from the loss to ``Δ_L``.
        decoder: what the inverses are and how they are trained.
        inversion: from a layer's target to the one below.
        propagation: "layerwise", "joint", "top-down", "composite", or "backprop" for the matched baseline, which uses
            no other part.
        influence: the normalisation.
        update: from ``Δ_l`` to ``.grad``.
    """

    name: str = "custom"
    cut: Cut = "post-activation"
    output_target: OutputTarget = field(default_factory=GradientStep)
    decoder: Objective = field(default_factory=Denoising)
    inversion: Inversion = field(default_factory=Difference)
    propagation: Propagation = "layerwise"
    influence: Influence = field(default_factory=Influence)
    update: Update = field(default_factory=Gradient)

    def __post_init__(self) -> None:
        """Check that the parts fit each other.

        Raises:
            ValueError: they do not.
        """
        check_types(self)
        if self.propagation in ("joint", "top-down") and not isinstance(self.inversion, InputSpace):
            raise ValueError(
                f"{self.propagation} sweeps are an input-space iteration; choose the inversion rule 'input-space',"
                " InputSpace(…)"
            )
        whole = isinstance(self.decoder, NoDecoder | DirectFeedback) and self.propagation != "backprop"
        if self.update.draws and whole:
            raise ValueError(
                f"update {self.update.name!r} brings drawn labels down layer by layer; choose a decoder objective with"
                " an inverse for each layer, such as WeightMirror(…)"
            )
        if isinstance(self.decoder, DirectFeedback) and self.propagation not in ("composite", "backprop"):
            raise ValueError("direct feedback maps the output to every layer; choose the propagation 'composite'")
        if self.inversion.needs_decoder and isinstance(self.decoder, NoDecoder) and self.propagation != "backprop":
            raise ValueError(f"inversion {self.inversion.name!r} needs decoders; choose a decoder objective")

    @property
    def derivatives(self) -> bool:
        """Whether changes go down through the derivatives of layers, by their decoders or for want of any."""
        return self.decoder.derivatives or not self.inversion.needs_decoder

    @property
    def straight(self) -> bool:
        """Whether layers ask of those below nothing but pulled-back changes: one backward pass is all, none inverts."""
        plain = isinstance(self.inversion, Difference) and self.propagation == "layerwise"
        unscaled = type(self.influence) is Influence and not self.influence.normalise
        return plain and unscaled and self.update.straight

    def __str__(self) -> str:
        """Print the recipe, a line per part."""
        rows = [self.name]
        for part in fields(self)[1:]:
            value = getattr(self, part.name)
            settings = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else {}
            title = getattr(value, "name", "" if settings else str(value))
            rows.append(f"  {part.name:<14} {title:<26} {', '.join(f'{k}={v}' for k, v in settings.items())}".rstrip())
        return "\n".join(rows)
