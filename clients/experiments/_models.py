"""The models, by the names in the tasks. A name includes its size: "decoder-64x2" is 64 wide and 2 layers deep."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from experiments._catalogue import Task
from experiments._data import Arrays
from mechanicd.demo.models import cnn

HEADS: Final = 4
VOCABULARY: Final = 1024
CONTEXT: Final = 64

torch.backends.mha.set_fastpath_enabled(False)  # a model is tested by the kernels that trained it


def linear(_: Task, arrays: Arrays) -> nn.Module:
    """Logistic regression."""
    return nn.Linear(arrays["x_train"].shape[1], _classes(arrays))


def mlp(_: Task, arrays: Arrays) -> nn.Module:
    """One hidden layer of 128."""
    inputs = int(np.prod(arrays["x_train"].shape[1:]))
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, _classes(arrays)))


class Residual(nn.Module):
    """A residual block with two 3 × 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.around(x))


def resnet(_: Task, arrays: Arrays) -> nn.Module:
    """A stem and three residual blocks of 16, 32 and 64 channels; 77,000 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, _classes(arrays)),
    )


class Embedding(nn.Module):
    """Embeds tokens and positions; the table of the tokens is also the output layer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(CONTEXT, width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return x

    def logits(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.tokens.weight)


class Decoder(nn.Module):
    """A causal language model."""

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Embedding(width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.embedding.logits(self.body(self.embedding(tokens), mask, is_causal=True))


class Translator(nn.Module):
    """Encoder and decoder over one vocabulary. Padding (token 0) is not attended to in the source; it ends the target."""

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Embedding(width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.Transformer(
            width,
            HEADS,
            num_decoder_layers=depth,
            dim_feedforward=4 * width,
            dropout=dropout,
            activation="gelu",
            custom_encoder=nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False),
            batch_first=True,
            norm_first=True,
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        padding = torch.zeros(source.shape, device=source.device).masked_fill_(source == 0, float("-inf"))
        x = self.body(
            self.embedding(source),
            self.embedding(target),
            tgt_mask=mask,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return self.embedding.logits(x)


class Classifier(nn.Module):
    """MiniLM, pretrained, and a fresh head on the pooled first token."""

    def __init__(self, arrays: Arrays, weights: Arrays, dropout: float) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        words, places = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
        config = BertConfig(  # type: ignore[call-arg]  # num_labels is its base class's
            vocab_size=len(words),
            hidden_size=words.shape[1],
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=4 * words.shape[1],
            max_position_embeddings=len(places),
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=_classes(arrays),
        )
        self.bert = BertForSequenceClassification(config)
        pretrained = {name: torch.from_numpy(values.astype(np.float32)) for name, values in weights.items()}
        self.bert.bert.load_state_dict(pretrained)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.bert(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
        return logits


def _classes(arrays: Arrays) -> int:
    return int(arrays["y_train"].max()) + 1


def _sizes(task: Task) -> tuple[int, int]:
    width, _, depth = task.model.partition("-")[2].partition("x")
    return int(width), int(depth)


_BUILDERS: Final[Mapping[str, Callable[[Task, Arrays], nn.Module]]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": lambda *_: cnn(),
    "resnet": resnet,
    "decoder": lambda task, _: Decoder(*_sizes(task), task.dropout),
    "translator": lambda task, _: Translator(*_sizes(task), task.dropout),
}


def build(task: Task, arrays: Arrays, pretrained: Callable[[], Arrays]) -> nn.Module:
    """The task's model, initialized from torch's random state. `pretrained` gives MiniLM's weights if they are needed."""
    name = task.model.partition("-")[0]
    return Classifier(arrays, pretrained(), task.dropout) if name == "minilm" else _BUILDERS[name](task, arrays)


def count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two param groups: matrices and kernels in one, vectors (biases, norms) in the other."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": params} for params in (matrices, vectors) if params]
