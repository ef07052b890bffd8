"""The main job in torch beside ours: the same batches, first weights, encoder, optimiser and schedule.

    python experiments/peer_torch.py --seeds=0,1,2
    python experiments/peer_torch.py --loss=MultiSimilarityLoss
    python experiments/peer_torch.py --steps=120 --turn=60

Both sides train in one process, `--turn` updates at a time, so that a busy machine slows both; reading and augmenting
images is not timed. The torch side is written out: ResNet (bench/torch_encoder.py), HAP2S, softmax over cosines, AdamW.
`--loss` puts a loss of pytorch-metric-learning (the bench extra) in HAP2S's place there. Test images are embedded
without zooms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
import torch
from bench.torch_encoder import Encoder
from torch.nn import functional

from configs import emoji
from hap2s_jax.evaluation.embed import embed_dataset
from hap2s_jax.reporting import environment
from hap2s_jax.run.config import Config
from hap2s_jax.run.trainer import Trainer, use_compilation_cache, use_devices


def hap2s(
    embeddings: torch.Tensor, labels: torch.Tensor, name: str, strength: float, margin: float
) -> torch.Tensor:
    """HAP2S_E (`strength` is sigma) or HAP2S_P (alpha) with Euclidean distances (Yu et al., ECCV 2018)."""
    square = (embeddings[:, None] - embeddings[None]).square().sum(-1)
    distances = torch.where(square > 0, square, 1).sqrt() * (square > 0)
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    # Both kinds of weight are powers of what grows with the distance.
    growth = distances / strength if name == "hap2s_e" else strength * distances.log1p()
    to_set = []
    for members, logs in ((positive, growth), (~same, -growth if name == "hap2s_e" else -2 * growth)):
        weights = torch.softmax(torch.where(members, logs, torch.finfo(logs.dtype).min), dim=1) * members
        to_set.append((weights * distances).sum(1))
    valid = positive.any(1) & (~same).any(1)
    return (functional.relu(to_set[0] - to_set[1] + margin) * valid).sum() / valid.sum().clamp(min=1)


class Peer:
    """The torch side of a run.

    Args:
      trainer: our side, whose config, first weights and schedule it takes.
      state: our first state.
      loss: name of a loss of pytorch-metric-learning, "" for the config's HAP2S.
    """

    def __init__(self, trainer: Trainer, state: Any, loss: str = ""):
        config = trainer.config
        auxiliary = config.auxiliary.name
        if config.loss.name not in ("hap2s_p", "hap2s_e") or auxiliary not in ("", "arcface"):
            raise ValueError("the torch side has hap2s_p and hap2s_e, alone or beside arcface without margin")
        self.config, self.schedule = config, trainer.learner.schedule
        classes = len(trainer.dataset.train.class_names) if auxiliary else 0
        self.model = Encoder(config.encoder, classes)
        self.model.take({"params": state.params["encoder"], "batch_stats": state.batch_stats})
        if auxiliary:
            ours = np.asarray(state.params["loss"]["auxiliary"]["kernel"])
            self.model.kernel = torch.nn.Parameter(torch.from_numpy(ours.copy()))
        self.loss: Any = None
        if loss:
            from pytorch_metric_learning import losses

            self.loss = getattr(losses, loss)()
        decay = config.optimizer.weight_decay
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(config.optimizer.b1, config.optimizer.b2))

    def objective(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The metric loss, and what the config puts beside it."""
        settings = self.config.loss
        if self.loss is not None:
            value = self.loss(embeddings, labels)
        else:
            strength = settings.sigma if settings.name == "hap2s_e" else settings.alpha
            value = hap2s(embeddings, labels, settings.name, strength, settings.margin)
        if self.model.kernel is not None:
            cosines = functional.normalize(embeddings) @ functional.normalize(self.model.kernel, dim=0)
            second = functional.cross_entropy(self.config.auxiliary.scale * cosines, labels)
            value = value + self.config.auxiliary.weight * second
        return value

    def update(self, step: int, batch: dict[str, np.ndarray]) -> float:
        """Update number `step`, from 0; returns the loss."""
        images, labels = (torch.from_numpy(np.concatenate(batch[key])) for key in ("image", "label"))
        for group in self.optimizer.param_groups:
            group["lr"] = float(np.asarray(self.schedule(step)))
        self.model.train()
        self.optimizer.zero_grad()
        value = self.objective(self.model(images), labels.long())
        value.backward()
        self.optimizer.step()
        return value.item()

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds images `[n, h, w, 3]`."""
        self.model.eval()
        return self.model(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def compare(config: Config, loss: str = "", turn: int = 60) -> dict[str, Any]:
    """Trains both in turns; returns mAP, seconds of training and first losses of both."""
    use_devices(config)
    use_compilation_cache(config)
    trainer = Trainer.create(config)
    state = trainer.initial_state()
    peer = Peer(trainer, state, loss)
    state = trainer.parallel.replicate(state)
    batches = trainer.train_batches(0)
    turns: list[tuple[float, float]] = []
    values: dict[str, list[float]] = {"ours": [], "torch": []}
    for first in range(0, config.steps, turn):
        some = list(itertools.islice(batches, min(turn, config.steps - first)))
        if first == 0:  # compiled before the clock starts
            jax.block_until_ready(
                trainer.update(trainer.parallel.replicate(trainer.initial_state()), some[0])
            )
        began = time.perf_counter()
        for batch in some:
            state, metrics = trainer.update(state, batch)
            values["ours"].append(float(metrics["loss"]))
        middle = time.perf_counter()
        values["torch"] += [peer.update(first + number, batch) for number, batch in enumerate(some)]
        turns.append((middle - began, time.perf_counter() - middle))
    test = trainer.dataset.test
    theirs = embed_dataset(
        lambda _, images: peer.embed(images), None, trainer.eval_batches(test), len(test), trainer.parallel
    )
    ours = trainer.measure(*trainer.embeddings(state, test), test)["mAP"]
    return {
        "ours": {"mAP": ours, "seconds": sum(a for a, _ in turns), "losses": values["ours"]},
        "torch": {
            "mAP": trainer.measure(*theirs, test)["mAP"],
            "seconds": sum(b for _, b in turns),
            "losses": values["torch"],
        },
        "ratio": statistics.median(b / a for a, b in turns),
    }


def main() -> None:
    """Prints a Markdown table with a row a seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--argument", default="", help="of the emoji config: tiny, loss=hap2s_e, ...")
    parser.add_argument("--loss", default="", help="a loss of pytorch-metric-learning for the torch side")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, help="by default the config's")
    parser.add_argument("--turn", type=int, default=60, help="updates that a side does at a time")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(environment.usable_cores())
    found = {}
    print(
        "| seed | ours, mAP | torch, mAP | ours, s | torch, s | torch / ours, median turn |\n"
        + "|---" * 6
        + "|"
    )
    for seed in options.seeds.split(","):
        config = emoji.get_config(options.argument)
        config.seed, config.evaluate.zooms = int(seed), False
        config.steps = options.steps or config.steps
        config.schedule.warmup_steps = min(config.schedule.warmup_steps, config.steps)
        found[seed] = both = compare(config, options.loss, options.turn)
        columns = [
            ("ours", "mAP", ".3f"),
            ("torch", "mAP", ".3f"),
            ("ours", "seconds", ".1f"),
            ("torch", "seconds", ".1f"),
        ]
        figures = [f"{both[side][key]:{form}}" for side, key, form in columns]
        print(f"| {seed} | {' | '.join(figures)} | {both['ratio']:.2f} |", flush=True)
    print(environment.summary())
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
