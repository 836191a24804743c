"""A run or checkpoint as a model of the lm-evaluation-harness: `gpt2_run`.

Prompts, truncation on the left and windows of long texts are those of the harness's own HFLM
(lm_eval/models/huggingface.py), so scores equal those of the exported directory.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self

import lm_eval.models  # noqa: F401  the harness's own models, which it looks for only while it knows none
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.common.open_model import open_model
from eval.generation.sampling import TextStream, generate, stream_texts
from eval.scoring.log_likelihood import Score, score_requests
from eval.scoring.tasks import Request, encode_context, encode_pair
from prepare.common.cli import UserError
from prepare.common.progress import Progress

MAX_NEW_TOKENS = 256  # HFLM's, where a task does not say


@register_model("gpt2_run")
class GPT2Run(LM):
    """The model of `--model_args run=X`: a run, a checkpoint, a Hugging Face directory, or a hub name."""

    def __init__(self, run: str | None = None, device: str | None = None, **_batch_sizes: Any) -> None:
        """Open the model. The harness's batch sizes are ignored: score_requests chooses its own."""
        super().__init__()
        name = None if run is None else str(run)  # the harness converts a numeric name to int
        with open_model(name, device or "auto") as (self.loaded, self.world):
            pass

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Open the model and put its name into the arguments, as `path`, after which the harness names its results."""
        model = super().create_from_arg_obj(arg_dict, additional_config)
        arg_dict["path"] = str(arg_dict.get("run") or model.loaded.run)
        return model

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood, and whether it is greedy, of each (context, continuation). Neighbours share a context."""
        pairs = [encode_pair(self.loaded.tokenizer, *request.args) for request in requests]
        grouped = []
        for context, group in groupby(pairs, key=lambda pair: pair[0]):
            continuations = [continuation for _, continuation in group]
            grouped.append(Request(context, continuations, [1] * len(continuations), 0))
        return [(score.loglik, score.greedy) for scores in self._score(grouped) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each text, in windows of the block size that do not overlap."""
        tokenizer, size, windows, owners = self.loaded.tokenizer, self.loaded.model.config.block_size, [], []
        prefix = encode_context(tokenizer, "")[0]
        for number, request in enumerate(requests):
            tokens = tokenizer.encode(request.args[0])
            for window in get_rolling_token_windows(tokens, prefix, size, context_len=1):
                context, continuation = make_disjoint_window(window)
                windows.append(Request(context, [continuation], [1], 0))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (score,) in zip(owners, self._score(windows), strict=True):
            totals[owner] += score.loglik
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context greedily, up to a stop text. UserError if the task wants samples or beams, or its
        max_gen_toks exceeds the block size."""
        texts, size = [], self.loaded.model.config.block_size
        for request in requests:
            context, task_settings = request.args
            settings: dict[str, Any] = dict(normalize_gen_kwargs(task_settings, MAX_NEW_TOKENS))
            stops, max_new_tokens = settings["until"], settings["max_gen_toks"]
            for key, supported in {"do_sample": False, "num_beams": 1}.items():
                if settings.get(key, supported) != supported:
                    raise UserError(f"generation_kwargs of the task: {key} is {settings[key]}, only {supported} works")
            if max_new_tokens >= size:
                raise UserError(f"max_gen_toks {max_new_tokens} of the task does not fit in the block size {size}")
            columns = generate(
                self.loaded.model,
                [encode_context(self.loaded.tokenizer, context)[max_new_tokens - size :]],
                max_new_tokens,
                temperature=0,
                vocab_size=self.loaded.tokenizer.vocab_size,
                stop=self.loaded.tokenizer.eot,
            )
            stream = TextStream(self.loaded.tokenizer, [stop for stop in stops if stop])
            texts.append("".join(text for _, text in stream_texts(columns, [stream])))
        return texts

    def _score(self, requests: Sequence[Request]) -> list[list[Score]]:
        with Progress("lm-eval", len(requests), "request") as bar:
            scores = score_requests(self.loaded.model, requests, self.world.device, after_batch=bar.update)
        return [scores[index] for index in range(len(requests))]
