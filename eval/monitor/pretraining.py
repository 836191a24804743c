"""Evaluation during pretraining: validation loss, HellaSwag, and a sample. All ranks share the work.

Between two parts of an evaluation the ranks all-reduce their sums, and whether any rank was asked to stop; if so, the
evaluation is abandoned, so that the run can be saved at once.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from eval.generation.sampling import generate
from eval.scoring.log_likelihood import count_correct, score_requests, sum_loss
from eval.scoring.tasks import Request, hellaswag_request, load_hellaswag
from prepare.common.cli import ROOT, UserError
from train.data.windows import Windows, validation_batches
from train.trainer.trainer import Trainer
from train.weights.load_model import model_tokenizer

HELLASWAG = Path("data/hellaswag_val.jsonl")  # in the working directory, or in the repository
GROUP = 8  # validation batches of a rank between two all-reduces
TIMED_GROUPS, TIMED_TASKS = 2, 100  # of each evaluation, in a dry run


class StopRequested(Exception):
    """A rank was asked to stop; raised on all ranks."""


class Evaluator:
    """Run each evaluation at its interval and log its row. Every rank must call `run` at every step."""

    def __init__(
        self, trainer: Trainer, intervals: dict[str, int], evaluations: Mapping[str, Callable[[], Mapping]]
    ) -> None:
        """
        Args:
            intervals: in steps, by the kind of row; 0 turns it off. All run after the last step too.
            evaluations: functions that return the row of each kind; called on every rank.
        """
        self.intervals, self.evaluations = intervals, evaluations
        self.last = trainer.config.train.max_steps
        self.model, self.context = trainer.model, trainer.context  # not compiled: shapes differ from call to call
        self.world, self.log, self.stop = trainer.world, trainer.log, trainer.stop

    def run(self, step: int) -> bool:
        """Run what is due after `step` finished steps; return whether to stop training."""
        due = [kind for kind in self.evaluations if self._is_due(step, kind)]
        try:
            for kind in due:
                row = self.evaluations[kind]()
                self.log.write(step, kind, **row)
                self.world.print(f"step {step}: {kind} | " + " | ".join(_format(key, row[key]) for key in row))
        except StopRequested:
            self.stop.agreed = True
            return True
        return False

    def _is_due(self, step: int, kind: str) -> bool:
        every = self.intervals[kind]
        if not every or (step % every and step != self.last) or (step == 0 and kind != "val"):
            return False
        return not self.world.sum([self.log.has(step, kind)])[0]  # logged before the run was resumed

    def all_reduce(self, *sums: float) -> list[float]:
        """Sum over all ranks; raise StopRequested if any rank was asked to stop."""
        *totals, stop = self.world.sum([*sums, self.stop.requested()])
        if stop:
            raise StopRequested
        return totals

    def mean_loss(self, groups: Iterable[Sequence[tuple[Tensor, Tensor]]]) -> dict[str, float]:
        """Mean loss over the targets of all ranks' batches, and their number. Every rank must have the same number of
        groups; stop requests are noticed after each."""
        nll, tokens = 0.0, 0.0
        for group in groups:
            sums = self.all_reduce(*sum_loss(self.model, group, self.world.device, self.context))
            nll, tokens = nll + sums[0], tokens + sums[1]
        return {"loss": nll / tokens, "tokens": int(tokens)}


class PretrainEvaluator(Evaluator):
    """Validation loss, HellaSwag and samples of a pretraining run."""

    def __init__(self, trainer: Trainer, val: Mapping[str, Sequence[Path]], batch_size: int) -> None:
        """Check before training begins what each evaluation needs; turn off those that lack it, with a message.

        Args:
            val: the validation shards of each source; plain ones have no name.
            batch_size: sequences in a forward pass.

        Raises:
            UserError: the validation shards hold less than one window, or the ranks see different HellaSwag files.
        """
        config = trainer.config
        self.eval, self.batch_size, self.seed = config.eval, batch_size, config.train.seed
        intervals = {"val": self.eval.every, "hellaswag": self.eval.hellaswag_every, "sample": self.eval.sample_every}
        evaluations = {"val": self._validate, "hellaswag": self._hellaswag, "sample": self._sample}
        super().__init__(trainer, intervals, evaluations)
        self.tokenizer = model_tokenizer(trainer.identity["tokenizer"], config.model.vocab_size)
        self.block_size, vocab_size = config.model.block_size, config.model.vocab_size
        self.requests: list[Request] = []
        self.val = {name: Windows(paths, self.block_size, vocab_size) for name, paths in val.items()}
        for kind, prepare in (("hellaswag", self._load_requests), ("sample", self._encode_prompt)):
            if not self.intervals[kind]:
                continue
            try:
                if self.tokenizer is None:
                    raise UserError("the data has no manifest.json, which names its tokenizer")
                prepare()
            except UserError as reason:  # no file, no manifest, or a character vocabulary
                self.intervals[kind] = 0
                self.world.print(f"no {kind} while training: {reason} (eval.{kind}_every 0 turns it off)")
        if not self.world.all_equal(self.intervals["hellaswag"]):
            raise UserError(f"only some processes see {HELLASWAG}: put it on a file system that all processes share")

    def _load_requests(self) -> None:
        tasks = load_hellaswag(HELLASWAG if HELLASWAG.exists() else ROOT / HELLASWAG)
        self.requests = [hellaswag_request(task, self.tokenizer, "plain") for task in tasks]  # ty: ignore[invalid-argument-type]

    def _encode_prompt(self) -> None:
        self.prompt = self.tokenizer.encode(self.eval.sample_prompt) or [self.tokenizer.eot or 0]

    def _validate(self) -> dict[str, float]:
        """`loss` is the plain mean of the named sources' losses, which are loss/NAME; `tokens` are those of all."""
        rows = {name: self._validate_source(windows) for name, windows in self.val.items()}
        mean = fmean(row["loss"] for row in rows.values())
        losses = {f"loss/{name}": row["loss"] for name, row in rows.items() if name}
        return {"loss": mean, "tokens": sum(row["tokens"] for row in rows.values()), **losses}

    def _validate_source(self, windows: Windows) -> dict[str, float]:
        batches: Iterator = validation_batches(
            windows, self.eval.val_tokens, self.batch_size, self.world.rank, self.world.size
        )
        groups = iter(lambda: list(islice(batches, GROUP)), [])
        return self.mean_loss(groups)

    def _hellaswag(self) -> dict[str, float]:
        world, after_batch = self.world, lambda _done: self.all_reduce()
        scores = score_requests(
            self.model, self.requests, world.device, self.context, world.rank, world.size, after_batch
        )
        correct, correct_norm, tasks = self.all_reduce(*count_correct(self.requests, scores))
        return {"acc": correct / tasks, "acc_norm": correct_norm / tasks, "tasks": int(tasks)}

    def _sample(self) -> dict[str, str]:
        """Sample on rank 0, with a separate generator, so that training's random numbers do not change."""
        text = ""
        if self.world.is_main:
            columns = generate(
                self.model,
                [self.prompt],
                self.eval.sample_tokens,
                top_k=50,
                generator=torch.Generator().manual_seed(self.seed),
                vocab_size=self.tokenizer.vocab_size,
                stop=self.tokenizer.eot,
            )
            tokens = []
            try:
                for column in columns:
                    if self.stop.requested():
                        break
                    tokens.append(int(column))
            except UserError as reason:  # the model has diverged; the run will report it
                self.world.print(f"the sample ends early: {reason}")
            text = self.eval.sample_prompt + self.tokenizer.decode(tokens)
        self.all_reduce()
        return {"text": text}

    def time_evaluations(self, step: int) -> dict[str, tuple[int, float]]:
        """Time a part of each evaluation, for a dry run, which ends with it. Every rank must call it.

        Returns:
            by kind: how often the evaluation is due from `step` on, and the seconds that one takes.
        """
        size = self.block_size

        def val_windows() -> int:
            return sum(min(max(1, self.eval.val_tokens // size), sum(each.counts)) for each in self.val.values())

        windows, tasks = val_windows(), len(self.requests)
        part = TIMED_GROUPS * GROUP * self.batch_size * self.world.size * size
        self.eval = replace(self.eval, val_tokens=min(part, self.eval.val_tokens))
        self.requests = self.requests[:: max(1, tasks // TIMED_TASKS)]
        scale = {"val": windows / max(1, val_windows()), "hellaswag": tasks / max(1, len(self.requests)), "sample": 1}
        found = {}
        try:
            for kind, evaluate in self.evaluations.items():
                if due := sum(self._is_due(each, kind) for each in range(step, self.last + 1)):
                    evaluate()  # the first call allocates memory and loads kernels
                    start = time.perf_counter()
                    evaluate()
                    found[kind] = due, (time.perf_counter() - start) * scale[kind]
        except StopRequested:
            self.stop.agreed = True
        return found


def _format(key: str, value: object) -> str:
    return f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value!r}"
