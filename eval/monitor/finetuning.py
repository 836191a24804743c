"""Evaluation during fine-tuning: validation with early stopping, and sampled answers."""

from collections.abc import Callable, Mapping

from torch import Tensor

from eval.generation.sampling import greedy_answer
from eval.monitor.pretraining import GROUP, Evaluator
from eval.scoring.classification import Tally, class_probabilities
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.data.examples import Examples, length_buckets
from train.model.classifier import Classifier
from train.model.loss import IGNORE_INDEX
from train.trainer.trainer import Trainer


class FinetuneEvaluator(Evaluator):
    """Validation on held-out examples, and early stopping, which depends only on the validation losses in the log: a
    resumed run stops where an uninterrupted one would have."""

    def __init__(self, trainer: Trainer, val: Examples, evaluations: Mapping[str, Callable[[], Mapping]]) -> None:
        config = trainer.config
        self.eval = config.eval
        if self.eval.patience and not len(val):
            reason = f"data.val_share {config.data.val_share} holds out no examples, which eval.patience needs"
            raise UserError(f"{reason}: raise it, or set eval.patience 0")
        intervals = {"val": self.eval.every, "sample": getattr(self.eval, "sample_every", 0)}
        intervals = intervals if len(val) else dict.fromkeys(intervals, 0)
        super().__init__(trainer, intervals, evaluations)
        self.val, self.batches = val, length_buckets(val, config.data.micro_batch_size)

    def run(self, step: int) -> bool:
        """Run what is due after `step` finished steps; return whether to stop training."""
        if super().run(step):
            return True
        if self.eval.patience and step % self.eval.every == 0:
            return self.world.sum([self._out_of_patience()])[0] > 0
        return False

    def _out_of_patience(self) -> bool:
        """Whether the last eval.patience validations were no better than the best before them; known to rank 0."""
        losses = [loss for _, loss in sorted(self.log.val_losses.items())]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= self.eval.patience

    def my_batches(self) -> list[list[tuple[Tensor, Tensor]]]:
        """This rank's validation batches, in groups; the number of groups is the same on every rank."""
        size, rank = self.world.size, self.world.rank
        groups = range(0, len(self.batches), size * GROUP)
        mine = [self.batches[start + rank : start + size * GROUP : size] for start in groups]
        return [[self.val.batch(numbers) for numbers in group] for group in mine]


class ClassifyEvaluator(FinetuneEvaluator):
    """Loss, accuracy, F1 and calibration of a classifier on held-out texts."""

    model: Classifier

    def __init__(self, trainer: Trainer, val: Examples) -> None:
        super().__init__(trainer, val, {"val": self._validate})

    def _validate(self) -> dict[str, float]:
        total = Tally(self.model.score.out_features)
        for group in self.my_batches():
            part = Tally(total.labels)
            for probabilities, truth in class_probabilities(self.model, group, self.world.device, self.context):
                part.add(probabilities, truth)
            total.sums += self.all_reduce(*part.sums)
        return total.metrics()


class InstructEvaluator(FinetuneEvaluator):
    """Loss on held-out answers, and sampled answers."""

    def __init__(self, trainer: Trainer, val: Examples, tokenizer: Tokenizer) -> None:
        super().__init__(trainer, val, {"val": self._validate, "sample": self._sample})
        self.tokenizer = tokenizer

    def _validate(self) -> dict[str, float]:
        return self.mean_loss(self.my_batches())

    def _sample(self) -> dict[str, list[dict[str, str]]]:
        """Answer the first held-out instructions greedily, on rank 0."""
        answers = []
        if self.world.is_main:
            try:
                for number in range(min(len(self.val), self.eval.samples)):
                    prompt, _ = first_question(self.val, number)
                    answer = greedy_answer(self.model, self.tokenizer, prompt, self.eval.sample_tokens)
                    answers.append({"prompt": self.tokenizer.decode(prompt), "answer": answer})
            except UserError as reason:  # the model has diverged; the run will report it
                self.world.print(f"no answers: {reason}")
        self.all_reduce()
        return {"answers": answers}


def first_question(examples: Examples, number: int) -> tuple[list[int], list[int]]:
    """The tokens of an example before its first answer, and those of the answer with its end-of-text token."""
    tokens, targets = examples.row(number)
    counted = (targets != IGNORE_INDEX).tolist()
    start = counted.index(True)
    end = counted.index(False, start) if False in counted[start:] else len(counted)
    return tokens[: start + 1].tolist(), targets[start:end].tolist()
