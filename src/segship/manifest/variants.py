"""One precision of a package: its graphs, and the record of what executed and what was lost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segship.manifest.values import PositiveInt, Precision, RelativePath, Sha256, Strict


class Executed(Strict):
    """What an engine really ran, read back from it. `convolution_share` adds up to 1 over number types."""

    engine: str
    version: str
    device: str
    processor: str
    convolution_share: dict[str, float] = Field(
        description="share of convolution time by type: {'i8': 0.97, 'f32': 0.03}"
    )
    evidence: Literal["profile", "settings"]
    rounding: Literal["activations and weights", "weights"] | None = Field(
        default=None, description="int16: what is rounded to 16 bits; the arithmetic in between is `convolution_share`"
    )
    elsewhere: str | None = Field(
        default=None, description="what did not run on `device`: '2 of 41 convolutions on CPUExecutionProvider'"
    )

    @property
    def rounded(self) -> str:
        """Of int16, what the engine's graph really rounds; '' for other precisions."""
        if self.rounding is None:
            return ""
        return "weights alone rounded to int16" if self.rounding == "weights" else f"{self.rounding} rounded to int16"

    @property
    def text(self) -> str:
        """'i8 97 % f32 3 %' of convolution time; of int16 also what was rounded; what ran on another device."""
        parts = sorted(self.convolution_share.items(), key=lambda item: -item[1])
        shares = " ".join(f"{kind} {share:.0%}" for kind, share in parts)
        if self.rounded:
            shares += f", {self.rounded}"
        return shares if self.elsewhere is None else f"{shares}; {self.elsewhere}"


class Fidelity(Strict):
    """How far this variant's maps are from fp32's on the network's grid, measured without ground truth; 0..1.

    The mean |difference| of two maps is also the most that their MAE against any ground truth can differ by.
    """

    measure: Literal["mask MAE"] = "mask MAE"
    value: float = Field(description="mean over pictures")
    worst: float
    worst_picture: str
    pictures: PositiveInt
    source: Literal["validate", "held out", "golden sample"] = Field(
        description="pictures given for it, kept out of the calibration folder, or the package's own sample alone"
    )
    pictures_sha256: Sha256 = Field(description="over the sorted hashes of the decoded pixels")
    engine: str
    limit: float
    forced: bool = Field(default=False, description="written although the limit was missed, because the user insisted")

    @property
    def text(self) -> str:
        origin = {"validate": "given", "held out": "held out of calibration", "golden sample": "golden sample"}
        number = f"{self.pictures} picture{'s' if self.pictures > 1 else ''}"
        found = f"{self.measure} to fp32 {self.value:.5f} over {number} ({origin[self.source]})"
        found += f", worst {self.worst:.5f} ({self.worst_picture}), allowed {self.limit:g}"
        return f"{found}; written by --force" if self.forced else found


class Drop(Strict):
    """Accuracy of this variant against fp32 on the same cases. Positive `drop` is a loss."""

    metric: str
    fp32: float
    value: float
    drop: float
    interval95: tuple[float, float] = Field(description="paired bootstrap over cases")
    worst_case: str
    worst_drop: float
    cases: PositiveInt
    dataset_sha256: Sha256
    engine: str


class Quantization(Strict):
    """How an integer variant was made."""

    preset: Literal["performance", "mixed"]
    algorithm: Literal["min-max", "percentile"] = "min-max"
    weights: Literal["per-channel", "per-tensor"]
    activations: Literal["symmetric", "asymmetric"]
    bias_correction: Literal["fast", "accurate", "none"]
    calibration_images: PositiveInt
    calibration_sha256: Sha256
    kept_in_float: tuple[str, ...] = Field(default=(), description="layers restored to float by the accuracy search")


class Variant(Strict):
    precision: Precision
    graphs: dict[str, RelativePath] = Field(description="member name -> graph file; two variants may share one graph")
    sha256: dict[str, Sha256]
    shapes: Literal["static", "dynamic"]
    batches: tuple[PositiveInt, ...] = Field(description="batch sizes it was compiled and checked for")
    engines: tuple[str, ...] = Field(description="engines it was checked on, best first")
    executed: tuple[Executed, ...] = ()
    quantization: Quantization | None = None
    drop: Drop | None = None
    fidelity: Fidelity | None = Field(default=None, description="saliency maps only")
