"""Training: the data of a rank, wrapped models, the trainer's steps, what is measured and what is saved."""

from distrain.training.aggregation import LossAggregator
from distrain.training.batches import prepare_batch, to_device
from distrain.training.checkpoint import Checkpointer
from distrain.training.data import dataloader
from distrain.training.steps import (
    detached_loss,
    supervised_evaluation_step,
    supervised_evaluation_step_amp,
    supervised_training_step,
    supervised_training_step_amp,
    supervised_training_step_apex,
    supervised_training_step_tpu,
)
from distrain.training.supervised import create_supervised_evaluator, create_supervised_trainer
from distrain.training.wrapping import prepare, unwrap

__all__ = [
    "Checkpointer",
    "LossAggregator",
    "create_supervised_evaluator",
    "create_supervised_trainer",
    "dataloader",
    "detached_loss",
    "prepare",
    "prepare_batch",
    "supervised_evaluation_step",
    "supervised_evaluation_step_amp",
    "supervised_training_step",
    "supervised_training_step_amp",
    "supervised_training_step_apex",
    "supervised_training_step_tpu",
    "to_device",
    "unwrap",
]
