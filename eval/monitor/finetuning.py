"""What is measured while a model is fine-tuned: the validation, which may end the run early, and sampled answers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eval.generation.answers import first_question, greedy_answers
from eval.monitor.pretraining import BATCHES, Evaluator
from eval.scoring.classification import Tally, class_probabilities
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.config.finetune import ClassifyConfig, ClassifyEval, FinetuneConfig, InstructConfig
from train.data.examples import Examples, length_buckets
from train.model.classifier import Classifier
from train.model.gpt import GPT
from train.parallel.world import World
from train.run.metrics_log import MetricsLog
from train.run.stop_request import StopRequest


class FinetuneEvaluator(Evaluator):
    """Validations on examples, and early stopping: a function of the validation losses that the log holds, so that a
    run that was killed ends where it would have ended."""

    def __init__(
        self,
        config: FinetuneConfig,
        val: Examples,
        world: World,
        log: MetricsLog,
        stop: StopRequest,
        measures: dict[str, Callable[[], dict[str, Any]]],
    ) -> None:
        self.eval: ClassifyEval = config.eval
        if self.eval.patience and not len(val):
            raise UserError(
                f"data.val_share {config.data.val_share} of so few examples is none, and eval.patience needs some: "
                "raise it, or set eval.patience 0"
            )
        intervals = {"val": self.eval.every, "sample": getattr(self.eval, "sample_every", 0)}
        intervals = intervals if len(val) else dict.fromkeys(intervals, 0)
        super().__init__(intervals, measures, config.train.max_steps, world, log, stop)
        self.val, self.batches = val, length_buckets(val, config.data.micro_batch_size)

    def run(self, step: int) -> bool:
        """Measure what is due after `step` finished steps; whether to stop here."""
        if super().run(step):
            return True
        if self.eval.patience and step % self.eval.every == 0:
            return self.world.sum([self._is_exhausted()])[0] > 0
        return False

    def _is_exhausted(self) -> bool:
        """Whether as many validations in a row as eval.patience were no better than the best before; rank 0 knows."""
        losses = [loss for _, loss in sorted(self.log.val_losses.items())]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= self.eval.patience

    def my_batches(self) -> list[list[tuple[Tensor, Tensor]]]:
        """This rank's validation batches, as many groups of them on every rank."""
        size, rank = self.world.size, self.world.rank
        groups = range(0, len(self.batches), size * BATCHES)
        mine = [self.batches[start + rank : start + size * BATCHES : size] for start in groups]
        return [[self.val.batch(numbers) for numbers in group] for group in mine]


class ClassifyEvaluator(FinetuneEvaluator):
    """The validation of a classifier."""

    def __init__(
        self,
        config: ClassifyConfig,
        model: Classifier,
        val: Examples,
        context: torch.autocast,
        world: World,
        log: MetricsLog,
        stop: StopRequest,
    ) -> None:
        super().__init__(config, val, world, log, stop, {"val": self._validate})
        self.model, self.context = model, context

    def _validate(self) -> dict[str, float]:
        total = Tally(self.model.score.out_features)
        sums = [0.0] * len(total.sums())
        for group in self.my_batches():
            part = Tally(total.labels)
            for probabilities, truth in class_probabilities(self.model, group, self.world.device, self.context):
                part.add(probabilities, truth)
            sums = [a + b for a, b in zip(sums, self.exchange(*part.sums()), strict=True)]
        return total.load(sums).metrics()


class InstructEvaluator(FinetuneEvaluator):
    """The loss on held-out answers, and answers of the model's own."""

    def __init__(
        self,
        config: InstructConfig,
        model: GPT,
        val: Examples,
        tokenizer: Tokenizer,
        context: torch.autocast,
        world: World,
        log: MetricsLog,
        stop: StopRequest,
    ) -> None:
        super().__init__(config, val, world, log, stop, {"val": self._validate, "sample": self._sample})
        self.model, self.tokenizer, self.context = model, tokenizer, context

    def _validate(self) -> dict[str, float]:
        return self.mean_loss(self.model, self.my_batches(), self.context)

    def _sample(self) -> dict[str, list[dict[str, str]]]:
        """Rank 0 answers the first held-out instructions, always with the likeliest token."""
        prompts = [first_question(self.val, number)[0] for number in range(min(len(self.val), self.eval.samples))]
        answers = [""] * len(prompts)
        if self.world.is_main:
            try:
                answers = greedy_answers(self.model, self.tokenizer, prompts, self.eval.sample_tokens)
            except UserError as reason:  # the weights have diverged; the run itself will say so
                self.world.print(f"no answers: {reason}")
        self.exchange()
        asked = map(self.tokenizer.decode, prompts)
        return {"answers": [{"prompt": p, "answer": a} for p, a in zip(asked, answers, strict=True)]}
