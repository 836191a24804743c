"""The page: its views, the data that they show, and the HTML file that holds both.

To add a view, KEY:
1. eval/views/KEY.py with a function KEY(subject: Subject) -> dict, see eval/views/subject.py. It is called once for
   each checkpoint and returns what json.dumps takes: texts, finite numbers, lists, dicts, and arrays by pack(). It
   raises Unavailable with a sentence for the reader where this model or checkpoint cannot have the view.
2. an entry in VIEWS: the title, the paragraph and the function, whose file and name the page shows.
3. eval/web/views/KEY.js with `export function render(section, page, state)`, called once with an empty element. It
   builds what it shows, and draws when something changes by
       page.watch("KEY", ["position", "token"], (data) => { ... })
   which calls back now, and after each change of the checkpoint or of these keys of the state, with what the function
   returned for the selected checkpoint; not where that is Unavailable, whose reason is shown instead.
`state` (web/state.js) has checkpoint (an index into page.checkpoints), position (of the prompt) and token (the id whose
logit is examined); views add keys of their own. `page` has tokens [{id, text}], vocabulary [text by id], model,
checkpoints and watch. web/arrays.js unpacks arrays; web/charts.js has elements, sliders, colours and token texts.

The data in the file:
    {title, prompt, tokens: [{id, text}], vocabulary: [text], model: {name, architecture, n_layer, ...},
     views: [{key, title, paragraph, file, function}],
     checkpoints: [{step, trained_tokens, views: {KEY: what its function returned, or {unavailable: reason}}}]}
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import urljoin

import torch
from torch import Tensor

from eval.views.attention import attention
from eval.views.layers import layers
from eval.views.learning_step import learning_step
from eval.views.next_token import next_token
from eval.views.over_time import over_time
from eval.views.subject import Subject, Unavailable
from eval.views.switch_off import switch_off
from eval.views.text_to_tokens import text_to_tokens
from eval.views.token_loss import token_loss
from prepare.common.cli import ROOT, ArgumentError, replace_surrogates
from prepare.tokens.tokenizer import Tokenizer
from train.weights.load_model import LoadedModel

MAX_TOKENS = 64  # of the prompt: GPT-2's logits alone are 268 kB a token
WEB = ROOT / "eval" / "web"
IMPORT = re.compile(r"""(\bfrom |\bimport |\bimport\()(["'`])(\.{1,2}/)""")  # of a module, by its relative path


@dataclass(frozen=True)
class View:
    """A section of the page. Its key is the function's name."""

    title: str
    paragraph: str
    compute: FunctionType  # of a Subject, returns a dict

    def describe(self) -> dict[str, str]:
        """What the page says about the view, with the file and the function that compute it."""
        code = self.compute.__code__
        file, function = Path(code.co_filename).relative_to(ROOT).as_posix(), self.compute.__name__
        return {"key": function, "title": self.title, "paragraph": self.paragraph, "file": file, "function": function}


VIEWS = (
    View(
        "Text to tokens",
        "A model reads numbers. A regular expression cuts the text into words, numbers, punctuation and spaces; each "
        "piece becomes its UTF-8 bytes; then neighbours are merged, those first whose merge was learned first, because "
        "they were the most frequent pair of the training text. What is left when no merge applies are the tokens, and "
        "a token's number in the vocabulary is its id. A character model has no merges: each character has an id.",
        text_to_tokens,
    ),
    View(
        "The next token",
        "At each position the model gives every token of its vocabulary a score, the logit. Softmax turns the scores "
        "into probabilities, which add up to 1. To write, it draws one token, appends it, and starts over. A "
        "temperature below 1 favours the likely tokens, one above 1 the unlikely ones; top-k, top-p and min-p cut the "
        "tail off before the draw.",
        next_token,
    ),
    View(
        "Attention",
        "Attention is how a position learns what stands before it. In each head, a position's query is compared with "
        "the key of every position up to its own; softmax turns these scores into weights, which add up to 1, and the "
        "position receives the other positions' values in these proportions. Each map has a row for the position that "
        "looks and a column for the one that it looks at. Choose a head, then a cell, to see its sum in numbers.",
        attention,
    ),
    View(
        "Layer by layer",
        "Each position has one vector, the residual stream, to which every layer adds what it computes. The logit lens "
        "reads the vector after each layer as if that layer were the last one: a prediction takes shape from the left "
        "to the right. And because the vector is a sum, so is the logit of any token: the chart divides it into what "
        "the embeddings, each head and each MLP add to it. Only differences count: what raises a token's logit helps "
        "that token if it raises those of the others less.",
        layers,
    ),
    View(
        "Switch off a head or a layer",
        "What does one head do? Set what it adds to the residual stream to zero, run the model again, and see what is "
        "lost. The number is the change of the mean loss of the prompt: above 0 the model misses the part, near 0 it "
        "can do without it, on this prompt. Parts work together, so the numbers do not add up. An induction head "
        "looks for the current token's earlier occurrence and attends to the token after it, to say it again: it "
        "continues a sequence that it has seen once. Its score is that attention on random tokens that are repeated, "
        "1 at most. Small models that were trained for minutes have no such head yet.",
        switch_off,
    ),
    View(
        "Loss by token",
        "The loss of a token is minus the logarithm of the probability that the model gave it: 0 if it was sure, 0.69 "
        "if it gave 50%, 6.9 if it gave 0.1%. Training lowers its mean. The text is held out: the model was not "
        "trained on it. The unigram knows how frequent each token is, and sees no context: where the model is better, "
        "context has helped. The more of it there is, the lower the loss, up to what the model can use.",
        token_loss,
    ),
    View(
        "One step of learning",
        "A step of training reads a batch of text and computes the gradient: for each weight, how much the loss would "
        "change with it. Its norm says how strongly the batch pulls at a matrix. The optimizer decides how far it "
        "goes: it keeps running means of the gradients, so that all matrices move by similar shares of themselves, "
        "although their gradients differ. AdamW scales each number by itself, Muon each matrix as a whole. This is the "
        "step that the run takes next, with its own batch, optimizer state and learning rate.",
        learning_step,
    ),
    View(
        "Over time",
        "Training starts from random numbers. Each line below is what one checkpoint of the run writes after the "
        "prompt, drawn with the same random numbers: first noise, then frequent tokens, words, phrases, while the loss "
        "falls. Choose a checkpoint here, or with the slider at the top: everything above then shows the model as it "
        "was at that step.",
        over_time,
    ),
)


def encode_prompt(prompt: str, loaded: LoadedModel) -> Tensor:
    """The ids of a page's prompt, (T,) int64 on the model's device. ArgumentError if it is empty, or longer than the
    model or the page can take."""
    ids = loaded.tokenizer.encode(prompt)
    if not ids:
        raise ArgumentError("the prompt is empty: give a text for the model to read")
    if len(ids) > (longest := min(MAX_TOKENS, loaded.model.config.block_size)):
        raise ArgumentError(f"the prompt has {len(ids)} tokens: give at most {longest}")
    return torch.tensor(ids, device=loaded.model.wte.weight.device)


def describe_page(prompt: str, subjects: Iterable[Subject]) -> dict[str, Any]:
    """All data of the page (see above), for the checkpoints of a model, the latest last; each is dropped after use."""
    checkpoints = []
    for subject in subjects:
        checkpoints.append(describe_checkpoint(subject))
    loaded, tokenizer = subject.loaded, subject.tokenizer
    config, vocabulary = loaded.model.config, token_texts(tokenizer)
    shape = {name: getattr(config, name) for name in ("architecture", "n_layer", "n_head", "n_embd", "block_size")}
    facts = {"vocab_size": tokenizer.vocab_size, "softcap": loaded.model.softcap}
    facts |= {part: config.architecture == "modern" and part not in config.without for part in ("rotary", "qk_norm")}
    return {
        "title": f"{loaded.name}, explained",
        "prompt": replace_surrogates(prompt),
        "tokens": [{"id": token, "text": vocabulary[token]} for token in subject.ids.tolist()],
        "vocabulary": vocabulary,
        "model": {"name": loaded.name, **shape, **facts, "parameters": loaded.model.num_parameters()},
        "views": [view.describe() for view in VIEWS],
        "checkpoints": checkpoints,
    }


def describe_checkpoint(subject: Subject) -> dict[str, Any]:
    """One checkpoint's step and the data of all views."""
    views = {}
    for view in VIEWS:
        try:
            views[view.compute.__name__] = view.compute(subject)
        except Unavailable as reason:
            views[view.compute.__name__] = {"unavailable": str(reason)}
    return {"step": subject.loaded.step, "trained_tokens": subject.trained_tokens, "views": views}


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token; of one whose bytes are not UTF-8 (a part of a character), its bytes as \\xe2\\x80."""
    return [
        tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")
        for token in range(tokenizer.vocab_size)
    ]


def render_page(data: dict[str, Any]) -> str:
    """The HTML file: the template with its style, the modules as an import map of data: URLs, and the data. A content
    security policy forbids every request, and every script but these."""
    files = sorted([*WEB.glob("*.js"), *WEB.glob("views/*.js")])
    modules = {path.relative_to(WEB).as_posix(): path.read_text("utf-8") for path in files}
    urls = {name: data_url(bare_imports(name, source)) for name, source in modules.items()}
    scripts = {"importmap": json.dumps({"imports": urls}), "module": 'import "main.js";'}
    hashes = " ".join(f"'sha256-{base64_sha256(script)}'" for script in scripts.values())
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} data:"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    content = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    html = (WEB / "page.html").read_text("utf-8")
    for tag, replacement in {
        '<meta charset="utf-8">': f'<meta charset="utf-8">\n{meta}',
        '<link rel="stylesheet" href="style.css">': f"<style>\n{(WEB / 'style.css').read_text('utf-8')}</style>",
        '<script type="module" src="main.js"></script>': "\n".join(
            f'<script type="{kind}">{script}</script>' for kind, script in scripts.items()
        ),
        '"application/json" id="data">': f'"application/json" id="data">{content}',  # last: nothing in it is replaced
    }.items():
        html = html.replace(tag, replacement)
    return html


def bare_imports(name: str, source: str) -> str:
    """A module's source with its relative imports as names of the import map: ../state.js in views/x.js is state.js."""
    return IMPORT.sub(lambda match: match[1] + match[2] + urljoin(f"/{name}", match[3])[1:], source)


def data_url(source: str) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(source.encode()).decode()}"


def base64_sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
