"""A run or checkpoint as a model of the lm-evaluation-harness, which must be installed: `gpt2_run`.

The prompts, the cutting on the left and the windows of long texts are those of its own HFLM
(lm_eval/models/huggingface.py), so a score is what it would be of the exported directory.
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

from eval.common.options import opened
from eval.generation.sampling import TextStream, generate, stream_texts
from eval.scoring.log_likelihood import Score, score_requests
from eval.scoring.tasks import Request, encode_context, encode_pair
from prepare.common.cli import UserError
from prepare.common.progress import Progress

LONGEST_ANSWER = 256  # tokens, where a task does not say
LIKELIEST = 50  # transformers, and so HFLM, samples among so many tokens where a task does not say
CHOICES = ("top_k", "top_p", "min_p", "repetition_penalty")  # of a task, named as generate has them


@register_model("gpt2_run")
class GPT2Run(LM):
    """What --model_args run=X names, as for --model of eval/: a run, a checkpoint, a Hugging Face directory, a name."""

    def __init__(self, run: str | None = None, device: str | None = None, batch_tokens: int | None = None, **_: Any):
        """Open the model. The harness's batch sizes are passed over: `batch_tokens` bounds a forward pass."""
        super().__init__()
        name = None if run is None else str(run)  # the harness has made a number of one
        with opened(name, device or "auto") as (self.loaded, self.world):
            self.batch_tokens = batch_tokens

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Open the model of --model_args, and say in them, in place, which it is: `path` is an argument that the
        harness knows, and names its results after once the model is open."""
        model = super().create_from_arg_obj(arg_dict, additional_config)
        arg_dict["path"] = str(arg_dict.get("run") or model.loaded.run)
        return model

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-likelihood and whether it is greedy. Neighbours share a context."""
        pairs = [encode_pair(self.loaded.tokenizer, *request.args) for request in requests]
        for request, (_, continuation) in zip(requests, pairs, strict=True):
            if not continuation:
                context, ending = request.args
                raise UserError(f"the ending {ending!r} has no tokens of its own behind {context[-20:]!r}")
        asked = []
        for _, group in groupby(pairs, key=lambda pair: pair[0]):
            contexts, continuations = zip(*group, strict=True)
            asked.append(Request(contexts[0], list(continuations), [1] * len(continuations), 0))
        return [(score.loglik, score.greedy) for scores in self._score(asked) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each text as a whole, in windows of the block size that do not overlap."""
        tokenizer, size, asked, owners = self.loaded.tokenizer, self.loaded.model.config.block_size, [], []
        prefix = encode_context(tokenizer, "")[0]
        for number, request in enumerate(requests):
            tokens = tokenizer.encode(request.args[0])
            for window in get_rolling_token_windows(tokens, prefix, size, context_len=1):
                context, continuation = make_disjoint_window(window)
                asked.append(Request(context, [continuation], [1], 0))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (score,) in zip(owners, self._score(asked), strict=True):
            totals[owner] += score.loglik
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context until a stop text, greedily unless the task says otherwise.

        Raises:
            UserError: a setting of the task that is not known here, or an answer longer than the block size.
        """
        texts, size = [], self.loaded.model.config.block_size
        for request in requests:
            context, asked = request.args
            settings = dict(normalize_gen_kwargs(asked, LONGEST_ANSWER))
            stops, longest = settings.pop("until"), settings.pop("max_gen_toks")
            temperature = settings.pop("temperature", 1.0)
            if not settings.pop("do_sample"):
                temperature = 0.0
            settings.setdefault("top_k", LIKELIEST)
            if settings.get("num_beams") == 1:  # no search
                del settings["num_beams"]
            if strange := sorted(settings.keys() - set(CHOICES)):
                known = ", ".join(CHOICES)
                raise UserError(f"generation_kwargs of the task: {strange[0]} is not known here, only {known}")
            if longest >= size:
                raise UserError(f"max_gen_toks {longest} of the task: this model sees {size} tokens with the prompt")
            columns = generate(
                self.loaded.model,
                [encode_context(self.loaded.tokenizer, context)[longest - size :]],
                longest,
                temperature,
                **{name: value for name, value in settings.items() if value},  # 0 or null: all of them
                vocab_size=self.loaded.tokenizer.vocab_size,
                stop=self.loaded.tokenizer.eot,
            )
            stream = TextStream(self.loaded.tokenizer, [stop for stop in stops if stop])
            texts.append("".join(text for _, text in stream_texts(columns, [stream])))
        return texts

    def _score(self, asked: Sequence[Request]) -> list[list[Score]]:
        with Progress("lm-eval", len(asked), "request") as bar:
            scores = score_requests(
                self.loaded.model, asked, self.world.device, batch_tokens=self.batch_tokens, poll=bar.update
            )
        return [scores[index] for index in range(len(asked))]
