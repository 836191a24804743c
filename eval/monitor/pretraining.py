"""What is measured while a model trains: validation loss, HellaSwag, and a sample. All ranks share the work.

Between two pieces of it the ranks exchange their sums, and with them whether any was asked to stop: then the
measurement is given up, and the run can be saved at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation.sampling import generate
from eval.scoring.log_likelihood import choice_counts, score_requests, sum_loss
from eval.scoring.tasks import Request, hellaswag_request, load_hellaswag
from prepare.common.cli import ROOT, UserError
from train.config.pretrain import Config
from train.data.windows import Windows, validation_batches
from train.model.gpt import GPT
from train.parallel.world import World
from train.run.metrics_log import MetricsLog
from train.run.stop_request import StopRequest
from train.weights.load_model import model_tokenizer

HELLASWAG = Path("data/hellaswag_val.jsonl")  # here or in the repository
BATCHES = 8  # validation batches a rank takes between two exchanges


class Stopped(Exception):
    """A rank was asked to stop; all of them know."""


class Evaluator:
    """What is measured at which steps. Every rank calls `run` at every step."""

    def __init__(
        self,
        intervals: dict[str, int],
        measures: dict[str, Callable[[], dict[str, Any]]],
        last: int,
        world: World,
        log: MetricsLog,
        stop: StopRequest,
    ) -> None:
        """
        Args:
            intervals: in steps, by the kind of row; 0 turns it off.
            measures: what makes the row of each kind; called on every rank.
            last: the run's last step, at which all is measured.
        """
        self.intervals, self.measures, self.last = intervals, measures, last
        self.world, self.log, self.stop = world, log, stop

    def run(self, step: int) -> bool:
        """Measure what is due after `step` finished steps; whether a stop was asked for meanwhile."""
        due = [kind for kind in self.measures if self._is_due(step, kind)]
        try:
            for kind in due:
                row = self.measures[kind]()
                self.log.write(step, kind, **row)
                self.world.print(f"step {step}: {kind} | " + " | ".join(_words(key, row[key]) for key in row))
        except Stopped:
            self.stop.agreed = True
            return True
        return False

    def _is_due(self, step: int, kind: str) -> bool:
        every = self.intervals[kind]
        if not every or (step % every and step != self.last) or (step == 0 and kind != "val"):
            return False
        return not self.world.sum([self.log.has(step, kind)])[0]  # done already, by the run that we resumed

    def exchange(self, *sums: float) -> list[float]:
        """The sums over all ranks; Stopped if any rank was asked to stop."""
        *totals, asked = self.world.sum([*sums, self.stop.requested()])
        if asked:
            raise Stopped
        return totals

    def mean_loss(
        self, model: GPT, groups: Iterable[Sequence[tuple[Tensor, Tensor]]], context: torch.autocast
    ) -> dict[str, float]:
        """The mean loss over the targets of all ranks' batches, and how many these are. Every rank has as many groups,
        and a stop that was asked for is seen after each."""
        nll, tokens = 0.0, 0.0
        for group in groups:
            sums = self.exchange(*sum_loss(model, group, self.world.device, context))
            nll, tokens = nll + sums[0], tokens + sums[1]
        return {"loss": nll / tokens, "tokens": int(tokens)}


class PretrainEvaluator(Evaluator):
    """The measurements of a pretraining run."""

    def __init__(
        self,
        config: Config,
        model: GPT,
        tokenizer: dict | None,
        val_paths: Sequence[Path],
        context: torch.autocast,
        batch_size: int,
        world: World,
        log: MetricsLog,
        stop: StopRequest,
    ) -> None:
        """Check what the measurements need before training begins. What cannot be measured is said, and left out.

        Args:
            model: the uncompiled module: shapes that change from call to call would compile anew each time.
            tokenizer: the manifest's description.
            batch_size: sequences at a time.

        Raises:
            UserError: the validation shards hold less than one window, or the HellaSwag file is damaged.
        """
        self.eval, self.model, self.context, self.batch_size = config.eval, model, context, batch_size
        intervals = {
            "val": self.eval.every,
            "hellaswag": self.eval.hellaswag_every,
            "sample": self.eval.sample_every,
        }
        measures = {"val": self._validate, "hellaswag": self._hellaswag, "sample": self._sample}
        super().__init__(intervals, measures, config.train.max_steps, world, log, stop)
        self.seed = config.train.seed
        self.tokenizer = model_tokenizer(tokenizer, config.model.vocab_size)
        if self.eval.every:
            self.windows = Windows(val_paths, config.model.block_size, config.model.vocab_size)
        for kind in ("hellaswag", "sample"):
            if self.tokenizer is None and self.intervals[kind]:
                self._leave_out(kind, "the data has no manifest.json, which would say what its ids mean")
        if self.intervals["hellaswag"]:
            self.requests = self._load_requests()
        if self.intervals["sample"]:
            self.prompt = self._load_prompt()

    def _load_requests(self) -> list[Request]:
        path = HELLASWAG if HELLASWAG.exists() else ROOT / HELLASWAG
        if not path.exists():
            self._leave_out("hellaswag", f"{HELLASWAG} is not there; python prepare/eval_sets.py fetches it")
            return []
        tasks = load_hellaswag(path)
        try:
            return [hellaswag_request(task, self.tokenizer, "plain") for task in tasks]
        except UserError as reason:  # a character vocabulary
            self._leave_out("hellaswag", str(reason))
            return []

    def _load_prompt(self) -> list[int]:
        try:
            prompt = self.tokenizer.encode(self.eval.sample_prompt)
        except UserError as reason:
            self._leave_out("sample", f"eval.sample_prompt: {reason}")
            return []
        return prompt or [self.tokenizer.eot or 0]

    def _leave_out(self, kind: str, reason: str) -> None:
        self.intervals[kind] = 0
        self.world.print(f"no {kind} while training: {reason} (eval.{kind}_every 0 leaves it out)")

    def _validate(self) -> dict[str, float]:
        batches: Iterator = validation_batches(
            self.windows, self.eval.val_tokens, self.batch_size, self.world.rank, self.world.size
        )
        groups = iter(lambda: list(islice(batches, BATCHES)), [])
        return self.mean_loss(self.model, groups, self.context)

    def _hellaswag(self) -> dict[str, float]:
        scores = score_requests(
            self.model,
            self.requests,
            self.world.device,
            self.context,
            rank=self.world.rank,
            world_size=self.world.size,
            poll=lambda _done: self.exchange(),
        )
        right, right_norm, tasks = self.exchange(*choice_counts(self.requests, scores))
        return {"acc": right / tasks, "acc_norm": right_norm / tasks, "tasks": int(tasks)}

    def _sample(self) -> dict[str, str]:
        """Rank 0 speaks, from a generator of its own: a sample does not change what is drawn in training."""
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
            except UserError as reason:  # the weights have diverged; the run itself will say so
                self.world.print(f"the sample ends early: {reason}")
            text = self.eval.sample_prompt + self.tokenizer.decode(tokens)
        self.exchange()
        return {"text": text}


def _words(key: str, value: object) -> str:
    return f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value!r}"
