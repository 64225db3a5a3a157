"""Train a small character-level transformer on the Python language reference, which pydoc brings along as text.

    python launch/scripts/train-characters.py                                    # one process
    distrain launch --nproc 2 --device cpu launch/scripts/train-characters.py    # two on the CPU
    distrain launch --profile gpu-8 launch/scripts/train-characters.py           # what a profile says
    torchrun --nproc-per-node 2 launch/scripts/train-characters.py

It is judged on text that it has not seen, in bits per character, beside guessing from counts; at the end it writes.
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import distrain

CONTEXT, WIDTH = 64, 64
SLOPES = (4, 1, 1 / 4, 1 / 16)  # how fast each head's attention falls with the distance: ALiBi, arXiv:2108.12409


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH))
        self.project = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[:, None] - place
        bias = torch.where(distance < 0, -math.inf, -distance * torch.tensor(SLOPES, device=x.device)[:, None, None])
        q, k, v = self.qkv(x).unflatten(2, (3, len(SLOPES), -1)).permute(2, 0, 3, 1, 4)
        x = x + self.project(scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def transformer(num: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(num, WIDTH), Block(), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num))


def bits(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(y_pred.flatten(0, 1), y.flatten()) / math.log(2)


def bits_by_counting(known: torch.Tensor, unseen: torch.Tensor, num: int) -> tuple[float, float]:
    """Return the bits per character of guessing by how often each comes, and by how often after the one before."""
    pairs = torch.bincount(known[:-1] * num + known[1:], minlength=num * num).reshape(num, num) + 0.1
    alone, after = pairs.sum(0) / pairs.sum(), pairs / pairs.sum(1, keepdim=True)
    return -alone[unseen].log2().mean().item(), -after[unseen[:-1], unseen[1:]].log2().mean().item()


def read_text() -> tuple[str, torch.Tensor]:
    """Return the characters there are, and the text as their numbers; a paragraph that topics share comes once."""
    text = "\n\n".join(dict.fromkeys("\n\n".join(topics.values()).split("\n\n")))
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return "".join(numbers), torch.tensor([numbers[character] for character in text])


def windows(text: torch.Tensor) -> torch.utils.data.TensorDataset:
    """Return pieces of a text, each with the same one character further on: what is to be guessed."""
    pieces = text.unfold(0, CONTEXT + 1, CONTEXT)
    return torch.utils.data.TensorDataset(pieces[:, :-1], pieces[:, 1:])


@torch.no_grad()
def write(model: nn.Module, text: torch.Tensor, num: int, device: torch.device) -> torch.Tensor:
    """Go on with a text. The input's shape stays the same, for devices that compile."""
    for _ in range(num):
        guess = model(text[None, -CONTEXT:].to(device))[0, -1].cpu()
        text = torch.cat([text, guess.softmax(0).multinomial(1)])
    return text[-num:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small character-level transformer.")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    with distrain.init(seed=0) as world:
        characters, text = read_text()
        known, unseen = text.tensor_split([len(text) * 9 // 10])
        train = distrain.dataloader(windows(known), batch_size=16, shuffle=True)
        test = distrain.dataloader(windows(unseen), batch_size=16)
        bare = transformer(len(characters)).to(world.device)
        optimizer = torch.optim.AdamW(bare.parameters(), lr=5e-3)
        model, optimizer = distrain.prepare(bare, optimizer)
        trainer = distrain.create_supervised_trainer(
            model, optimizer, bits, device=world.device, output_transform=distrain.detached_loss
        )
        distrain.LossAggregator(name="bits").attach(trainer)
        evaluator = distrain.create_supervised_evaluator(model, device=world.device)
        distrain.LossAggregator(name="bits", output_transform=lambda output: bits(*output)).attach(evaluator)
        distrain.ProgressBar().attach(trainer)
        distrain.Checkpointer(keep=2).attach(trainer, model=model, optimizer=optimizer, loader=train)

        @trainer.on(distrain.Events.EPOCH_COMPLETED)
        def judge() -> None:
            evaluator.run(test)
            if world.is_main:
                print(f"epoch {trainer.state.epoch}: {evaluator.state.metrics['epoch_bits']:.2f}", flush=True)

        if world.is_main:
            alone, after = bits_by_counting(known, unseen, len(characters))
            print("bits per character of text that it has not seen", end=", ")
            print(f"by counting characters {alone:.2f}, pairs of them {after:.2f}, by training:", flush=True)
        trainer.run(train, max_epochs=args.epochs)
        if world.is_main:
            text = write(bare, unseen[:CONTEXT], 300, world.device)
            print("It writes:", "".join(characters[each] for each in text), sep="\n\n")


if __name__ == "__main__":
    main()
