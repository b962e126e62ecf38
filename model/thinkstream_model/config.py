"""The Thinker's shape, read from a checkpoint's ``config.json``.

Accepts a whole Omni config, a Thinker's own and a bare text config, in both spellings of the rotary
settings. Sizes have no defaults: the class defaults of public implementations are not the released
model's, so a size that is missing is an error and never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .config_fields import ConfigFields, JsonObject
from .errors import ConfigError
from .json_files import read_object

_JSON_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerConfig:
    """Shape and constants of one Thinker.

    Attributes:
        head_dim: Width of a head; query width is ``num_heads * head_dim`` and need not be ``hidden_size``.
        vocab_size: Rows of the embedding and of the output matrix, padding rows included.
        num_experts: Experts of a MoE layer; 0 makes every layer dense.
        moe_intermediate_size: Inner width of one expert.
        intermediate_size: Inner width of a dense layer's MLP.
        decoder_sparse_step: Every n-th layer has experts, the last of each n.
        mlp_only_layers: Layers that are dense all the same.
        norm_topk_prob: Whether the chosen experts' weights are scaled to sum to 1.
        mrope_section: Rotary pairs of time, height and width; text has one position for the three, so
            it changes nothing here. Empty where the checkpoint names none.
        tie_word_embeddings: The output matrix is the embedding.

    Raises:
        ConfigError: A value outside its range, or values that contradict each other.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    decoder_sparse_step: int
    norm_topk_prob: bool
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    mlp_only_layers: tuple[int, ...] = ()
    mrope_section: tuple[int, ...] = ()
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "decoder_sparse_step", "max_position_embeddings"):  # fmt: skip
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            _expect(math.isfinite(value) and value > 0, name, "a finite number above 0", value)
        _expect(self.num_experts >= 0, "num_experts", "at least 0", self.num_experts)
        _expect(self.head_dim % 2 == 0, "head_dim", "an even number", self.head_dim)
        _expect(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            f"a divisor of {self.num_heads} query heads",
            self.num_kv_heads,
        )
        self._check_layers()
        self._check_mrope()

    def _check_layers(self) -> None:
        layers = range(self.num_layers)
        _expect(
            all(n in layers for n in self.mlp_only_layers),
            "mlp_only_layers",
            f"layers from 0 to {self.num_layers - 1}",
            list(self.mlp_only_layers),
        )
        if self.num_moe_layers:
            experts, chosen, width = self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size
            _expect(1 <= chosen <= experts, "num_experts_per_tok", f"1 to {experts}", chosen)
            _expect(width >= 1, "moe_intermediate_size", "at least 1", width)
        if self.num_moe_layers < self.num_layers:
            _expect(self.intermediate_size >= 1, "intermediate_size", "at least 1", self.intermediate_size)

    def _check_mrope(self) -> None:
        if self.mrope_section:
            found = list(self.mrope_section)
            fits = len(found) == 3 and sum(found) == self.head_dim // 2 and min(found) >= 0
            _expect(fits, "mrope_section", f"three numbers that sum to {self.head_dim // 2}", found)

    @classmethod
    def from_json(cls, source: str | Path | JsonObject) -> ThinkerConfig:
        """Read a checkpoint's config.

        Args:
            source: A checkpoint's folder, its ``config.json``, or the object parsed from it.

        Raises:
            ConfigError: No such file, not JSON, a size is missing, or a value that this Thinker does
                not implement.
        """
        file, document = _load(source)
        fields = _text_config(file, document)
        try:
            return _build(fields)
        except ConfigError as error:
            if error.file != _UNNAMED:
                raise
            name = fields.path(_JSON_NAMES.get(error.field, error.field))
            raise ConfigError(file, name, error.expected, error.found) from None

    def is_moe(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts rather than one dense MLP."""
        return (
            self.num_experts > 0
            and layer not in self.mlp_only_layers
            and (layer + 1) % self.decoder_sparse_step == 0
        )

    @property
    def num_moe_layers(self) -> int:
        """Layers with experts."""
        return sum(self.is_moe(layer) for layer in range(self.num_layers))

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def kv_bytes(self, num_tokens: int, dtype_bytes: int) -> int:
        """Bytes that the keys and values of so many tokens take over all layers.

        Args:
            num_tokens: The tokens.
            dtype_bytes: Bytes of one number.
        """
        return 2 * self.num_layers * num_tokens * self.kv_size * dtype_bytes

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole Thinker."""
        return self._num_parameters(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token meets: the chosen experts only, one row of the embedding left out."""
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self._num_parameters(self.num_experts_per_tok) - embedding

    def _num_parameters(self, experts_per_layer: int) -> int:
        hidden = self.hidden_size
        attention = hidden * (2 * self.q_size + 2 * self.kv_size) + 2 * self.head_dim
        moe = self.num_experts * hidden + experts_per_layer * 3 * hidden * self.moe_intermediate_size
        dense = 3 * hidden * self.intermediate_size
        num_dense_layers = self.num_layers - self.num_moe_layers
        tables = 1 if self.tie_word_embeddings else 2
        return (
            self.num_layers * (attention + 2 * hidden)
            + self.num_moe_layers * moe
            + num_dense_layers * dense
            + tables * self.vocab_size * hidden
            + hidden
        )

    def describe(self) -> str:
        """The resolved shape as a table, to be shown at load."""
        moe_layers = [layer for layer in range(self.num_layers) if self.is_moe(layer)]
        rows = [
            ("layers", f"{self.num_layers} ({_spell_layers(moe_layers)} with experts)"),
            ("hidden width", f"{self.hidden_size}"),
            ("heads", f"{self.num_heads} query, {self.num_kv_heads} key and value, {self.head_dim} wide"),
            ("experts", f"{self.num_experts}, {self.num_experts_per_tok} per token"),
            ("expert width", f"{self.moe_intermediate_size}"),
            ("expert weights", "sum to 1" if self.norm_topk_prob else "as the softmax gives them"),
            ("dense width", f"{self.intermediate_size}" if len(moe_layers) < self.num_layers else "unused"),
            ("vocabulary", f"{self.vocab_size} rows{', tied' if self.tie_word_embeddings else ''}"),
            ("context", f"{self.max_position_embeddings}"),
            ("rotary base", f"{self.rope_theta:g}"),
            ("rms epsilon", f"{self.rms_norm_eps:g}"),
            ("parameters", f"{self.num_parameters:,} ({self.num_active_parameters:,} per token)"),
        ]
        return "\n".join(f"{name:<15} {value}" for name, value in rows)


_UNNAMED = "ThinkerConfig"


def _expect(fits: bool, field: str, expected: str, found: object) -> None:
    if not fits:
        raise ConfigError(_UNNAMED, field, expected, found)


def _spell_layers(layers: list[int]) -> str:
    if not layers:
        return "none"
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    if layers == list(range(layers[0], layers[-1] + 1, step)):
        if step == 1:
            return f"{layers[0]} to {layers[-1]}"
        return f"{', '.join(map(str, layers[:3]))}, ... {layers[-1]}" if len(layers) > 3 else str(layers)
    return ", ".join(map(str, layers))


def _load(source: str | Path | JsonObject) -> tuple[str, JsonObject]:
    if isinstance(source, Mapping):
        return "config.json", source
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(file, "", "a config file", "nothing")
    return str(file), read_object(file)


def _text_config(file: str, document: JsonObject) -> ConfigFields:
    fields = ConfigFields(file, "", document)
    for name in ("thinker_config", "text_config"):
        fields = fields.inner(name) or fields
    return fields


def _build(fields: ConfigFields) -> ThinkerConfig:
    _refuse_what_is_not_implemented(fields)
    rope_theta, mrope_section = _rotary(fields)
    tied = fields.values.get("tie_word_embeddings") is not None and fields.boolean("tie_word_embeddings")
    return ThinkerConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=fields.integer("num_attention_heads"),
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim"),  # never hidden / heads: the released model has twice that
        intermediate_size=fields.integer("intermediate_size"),
        num_experts=fields.integer("num_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        decoder_sparse_step=fields.integer("decoder_sparse_step"),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        rope_theta=rope_theta,
        rms_norm_eps=fields.number("rms_norm_eps"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        mlp_only_layers=fields.integers("mlp_only_layers"),
        mrope_section=mrope_section,
        tie_word_embeddings=tied,
    )


def _rotary(fields: ConfigFields) -> tuple[float, tuple[int, ...]]:
    """Base and sections in either spelling; the newer ``rope_parameters`` wins where both stand."""
    rope = fields.inner("rope_parameters") or fields.inner("rope_scaling")
    if rope is None:
        return fields.number("rope_theta"), ()
    for name in ("rope_type", "type"):
        if rope.values.get(name, "default") not in ("default", "mrope"):
            raise rope.refuse(name, "default")
    holder = rope if "rope_theta" in rope.values else fields
    return holder.number("rope_theta"), rope.integers("mrope_section")


def _refuse_what_is_not_implemented(fields: ConfigFields) -> None:
    implemented: dict[str, tuple[object, ...]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "use_sliding_window": (None, False),
        "shared_expert_intermediate_size": (None, 0),
    }
    for name, values in implemented.items():
        if fields.values.get(name) not in values:
            raise fields.refuse(name, f"{values[1]!s} or nothing")
