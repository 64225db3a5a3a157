"""Hugging Face's Trainer on a transformer of a few hundred weights, made here: nothing is downloaded."""

import sys

import report
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


class Words(torch.utils.data.Dataset):
    """Sentences of eight numbers; the label says whether the first is large."""

    def __init__(self):
        self.words = torch.randint(0, 16, (32, 8), generator=torch.Generator().manual_seed(17))

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        return {"input_ids": self.words[index], "labels": int(self.words[index][0] > 7)}


class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if "--fail" in sys.argv and args.process_index == 1:
            sys.exit(7)


def main():
    set_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=8, **sizes))
    arguments = TrainingArguments(
        output_dir=sys.argv[1],
        use_cpu=True,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Words(), callbacks=[Fail()])
    result = trainer.train()
    report.write(
        rank=arguments.process_index,
        local_rank=arguments.local_process_index,
        world_size=arguments.world_size,
        loss=result.training_loss,
        model=model,
        logged=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    )


if __name__ == "__main__":
    main()
