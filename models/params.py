"""The sections of params.yaml for a model: encoder, networks, fit, score, threshold and second stage.

`Section` is the base of every params section: frozen, strict, and without unknown keys. Nothing here needs torch, so
that commands that only read params start quickly.
"""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """One typed part of params.yaml or of a contract."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class EncodeParams(Section):
    """How columns become numbers. log_skewness None: log1p only for columns declared as log_numeric."""

    log_skewness: float | None = Field(default=3.0, gt=0)


# Params files have lists; each number in them is still validated strictly.
Widths = Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=65536)], ...], Field(strict=False, min_length=1)]

Activation = Literal["relu", "elu", "gelu", "silu", "tanh"]

Output = Literal["linear", "sigmoid"]


class AutoencoderParams(Section):
    """Widths of the hidden layers, the narrowest of them the bottleneck.

    output: sigmoid if every slot is in 0 to 1 (pixels, multi-hot tokens). activity_penalty: weight of the L1 norm
    of the bottleneck's activations (Ng 2011, "Sparse autoencoder").
    """

    kind: Literal["autoencoder"] = "autoencoder"
    layers: Widths = (20, 8, 20)
    activation: Activation = "silu"
    output: Output = "linear"
    activity_penalty: float = Field(default=0.0, ge=0)


class VariationalParams(Section):
    """Hidden widths of the encoder (the decoder mirrors them), latent width Z, weight of the KL term."""

    kind: Literal["variational"] = "variational"
    hidden: Widths = (20,)
    latent: int = Field(default=8, ge=1, le=65536)
    kl_weight: float = Field(default=0.1, ge=0)
    activation: Activation = "silu"


def _list_networks(given: object) -> object:
    if given == [] or given == ():
        raise ValueError("a detector needs at least one network")
    return given if isinstance(given, list | tuple) else (given,)


NetworkParams = Annotated[AutoencoderParams | VariationalParams, Field(discriminator="kind")]

# The key is `network:` for one network, `networks:` for a list.
Networks = Annotated[
    tuple[NetworkParams, ...],
    Field(strict=False, validation_alias=AliasChoices("networks", "network")),
    BeforeValidator(_list_networks),
]


class FitParams(Section):
    """How long and how fast to fit. noise > 0 makes the network denoise (Vincent et al. 2008).

    precision bfloat16: products and activations of the fit in 16 bits, weights and updates in 32. compile: the loss is
    compiled, which takes seconds at the start. Both change the fitted weights, but not how they score.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    patience_epochs: int = Field(default=8, ge=1)
    # An epoch counts as better if it lowers the best loss by this share.
    min_improvement: float = Field(default=1e-3, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)
    # Excluded from the hash at their defaults, so that params older than these keys keep their hash.
    precision: Literal["float32", "bfloat16"] = Field(default="float32", exclude_if=lambda given: given == "float32")
    compile: bool = Field(default=False, exclude_if=lambda given: not given)


class NeighboursParams(Section):
    """How many clean fit rows to keep, how many to compare with, and the exponent of their spacing (0: none).

    draw random: any fit rows. spread: fit and stopping rows, half of them at random, then those farthest from all drawn
    so far, so that rare kinds of clean rows are among the references.
    """

    kind: Literal["neighbours"] = "neighbours"
    references: int = Field(default=2000, ge=2, le=20_000)
    neighbours: int = Field(default=5, ge=1, le=1000)
    local_scaling: float = Field(default=0.5, ge=0, le=1)
    # Excluded from the hash at its default, so that params older than this key keep their hash.
    draw: Literal["random", "spread"] = Field(default="random", exclude_if=lambda given: given == "random")


class ResidualParams(Section):
    """The kind of residual score: see `weigh_slots`."""

    kind: Literal["mean_squared", "mean_absolute", "root_mean_squared", "standardised"] = "standardised"


ScoringParams = Annotated[ResidualParams | NeighboursParams, Field(discriminator="kind")]


class QuantilePolicy(Section):
    """Flag scores above a share q of clean rows; max_interval_width limits the interval of the false-alarm rate."""

    kind: Literal["quantile"] = "quantile"
    q: float = Field(default=0.99, gt=0, lt=1)
    max_interval_width: float | None = Field(default=None, gt=0, lt=1)


class FixedPolicy(Section):
    """Flag scores above a fixed value."""

    kind: Literal["fixed"] = "fixed"
    value: float


class BestFBetaPolicy(Section):
    """Maximise F-beta on labelled tuning rows; beta > 1 favours recall over precision."""

    kind: Literal["best_f_beta"] = "best_f_beta"
    beta: float = Field(default=1.0, gt=0)


class RecallPolicy(Section):
    """Flag at least this share of anomalies, judged by the known ones among the tuning rows."""

    kind: Literal["recall"] = "recall"
    at_least: float = Field(default=0.9, gt=0, lt=1)


class AlarmBudgetPolicy(Section):
    """Flag a fixed expected number of clean records per night."""

    kind: Literal["alarm_budget"] = "alarm_budget"
    false_alarms_per_night: float = Field(gt=0)


class FalseDiscoveryPolicy(Section):
    """Flag as many records of a night as possible, with an expected share of false alarms of at most this."""

    kind: Literal["false_discovery_rate"] = "false_discovery_rate"
    at_most: float = Field(default=0.1, gt=0, lt=1)


ThresholdParams = Annotated[
    QuantilePolicy | FixedPolicy | BestFBetaPolicy | RecallPolicy | AlarmBudgetPolicy | FalseDiscoveryPolicy,
    Field(discriminator="kind"),
]


class NetworkReducerParams(Section):
    """A small network, with dropout on its inputs because verdicts are few (Srivastava et al. 2014)."""

    kind: Literal["network"] = "network"
    hidden: Widths = (32,)
    epochs: int = Field(default=60, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


class ForestReducerParams(Section):
    """A random forest (Breiman 2001)."""

    kind: Literal["forest"] = "forest"
    trees: int = Field(default=200, ge=1)
    min_leaf: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)


ReducerParams = Annotated[NetworkReducerParams | ForestReducerParams, Field(discriminator="kind")]


class ReducerLimits(Section):
    """Conditions for a reducer to suppress anything; loss is a share of the flagged true anomalies."""

    min_verdicts: int = Field(default=200, ge=10)
    min_confirmed: int = Field(default=30, ge=5)
    max_recall_loss: float = Field(default=0.1, gt=0, lt=1)
