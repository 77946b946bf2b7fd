"""What the paper reports, for orientation: other data, other models, other sizes. Source: Cutkosky, Defazio, Mehta (2023)."""

from collections.abc import Mapping
from typing import Final

SOURCE: Final = "Cutkosky, Defazio, Mehta (2023), “Mechanic: A Learning Rate Tuner”"

FIGURES: Final[Mapping[str, str]] = {
    "logistic": "Figure 4 shows curves for 12 logistic regressions, without numbers; the text finds MECHANIC, over all its "
    "comparisons, near a tuned rate or better.",
    "vision": "Table 2, test accuracy on CIFAR-100 / CIFAR-10 from scratch: ResNet-18 with momentum 77.6 / 95.4, M-momentum "
    "75.3 / "
    "94.1, M-momentum with λ = 0.1 76.6 / 95.3. WRN-40-10 on CIFAR-100: 79.9, M-momentum 79.6.",
    "language": "Figures 2 and 5 show curves, without numbers, for IWSLT14 and BookWiki, where MECHANIC is said to "
    "outperform both the "
    "tuned baseline and D-adaptation. Table 8, masked-language accuracy of BERT-B: best of five AdamW rates 71.5, M-AdamW "
    "71.7; best "
    "of five Lion rates 71.8, M-Lion 72.0.",
    "finetune": "Table 1, BERT-B pre-trained with AdamW, peak validation score on MNLI-m/mm, QNLI, SST-2, QQP: AdamW "
    "84.3/84.8, 91.0, "
    "92.4, 90.1; M-AdamW 83.7/83.5, 90.6, 91.9, 90.5. Pre-trained with Lion: Lion 83.4/83.5, 86.8, 89.7, 89.4; M-Lion "
    "83.1/83.8, 89.9, "
    "91.0, 90.2. MECHANIC was run with dropout 0, the baseline with 0.1.",
    "scale": "Figure 1 shows S over the steps of BERT pre-training, without numbers: it falls with a smaller batch and with "
    "a larger "
    "model. Table 7 has the best AdamW rates of BERT-B and BERT-L: 5e-3 and 1e-3.",
    "groups": "Section 5 asks whether one S per layer would do better; the paper has no numbers.",
}

ABLATIONS: Final[Mapping[str, tuple[str, str, Mapping[float, str]]]] = {
    "base_lr": (
        "Table 3",
        "MLM accuracy of BERT-B",
        {1e-2: "71.7", 1e-1: "71.6", 1.0: "71.6", 1e1: "71.4", 1e2: "71.6"},
    ),
    "s_init": ("Table 4", "accuracy of ViT-B/16", {1e-8: "49.8", 1e-7: "49.8", 1e-6: "49.9", 1e-5: "49.7", 1e-4: "49.6"}),
    "s_decay": ("Table 5", "accuracy of ViT-B/16", {0.0: "49.7", 1e-3: "49.8", 1e-2: "49.9", 1e-1: "49.7", 1.0: "diverged"}),
    "n": ("Table 6", "accuracy of ViT-B/16", {2: "48.9", 4: "49.5", 6: "49.9", 8: "49.6"}),
}
"""By setting: the table, what it measures, and its values."""
