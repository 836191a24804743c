"""Left: the loss. Middle: its gradient with respect to the logits. Right: a gradient is the slope of a tangent.

The model is the chapter's, after a part of its steps.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from eval.common.curves import GREY
from prepare.tokens.tokenizer import CharTokenizer
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT

LINE = "To be, or not to be: that is the question."
STEPS = 45
PLACE = 17  # of the middle panel: what follows "To be, or not to b"


def draw() -> Figure:
    tokenizer = CharTokenizer(LINE)
    ids = torch.tensor([tokenizer.encode(LINE)])
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=tokenizer.vocab_size))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    for _ in range(STEPS):
        model.zero_grad()
        model(inputs, targets).backward()
        for parameter in model.parameters():
            parameter.data -= 0.3 * parameter.grad
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.6), width_ratios=(3, 4, 3))
    draw_loss(left)
    draw_logit_gradient(middle, model(inputs)[0, PLACE], tokenizer)
    draw_tangent(right, model, inputs, targets)
    return figure


def draw_loss(panel: plt.Axes) -> None:
    probability = torch.linspace(0.002, 1, 500)
    panel.plot(probability, -probability.log(), color="C0")
    panel.set(title="The loss at one position", xlabel="probability of the true next token", ylabel="-log, in nats")
    panel.set(xlim=(0, 1), ylim=(0, 6))


def draw_logit_gradient(panel: plt.Axes, logits: Tensor, tokenizer: CharTokenizer) -> None:
    """For the characters that the model finds most probable, (V,) logits."""
    logits = logits.detach().requires_grad_()
    [target] = tokenizer.encode(LINE[PLACE + 1])
    torch.nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    top = [target, *(token for token in logits.topk(7).indices.tolist() if token != target)]
    places = torch.arange(len(top))
    panel.bar(places - 0.2, logits.softmax(-1).detach()[top], 0.4, color="C0", label="probability")
    panel.bar(places + 0.2, logits.grad[top], 0.4, color="C1", label="gradient of the logit")
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xticks(places, [repr(tokenizer.decode([token])) for token in top])
    panel.grid(visible=False, axis="x")
    panel.set(title=f"After {LINE[: PLACE + 1]!r}", xlabel=f"next character; the true one is {LINE[PLACE + 1]!r}")
    panel.legend(loc="lower right")


def draw_tangent(panel: plt.Axes, model: GPT, inputs: Tensor, targets: Tensor) -> None:
    """The loss for several values of the parameter of an MLP with the largest gradient."""
    matrix = model.h[0].mlp.c_fc.weight
    loss = model(inputs, targets)
    [gradient] = torch.autograd.grad(loss, matrix)
    row, column = divmod(int(gradient.abs().argmax()), matrix.size(1))
    value, slope, losses = matrix[row, column].item(), gradient[row, column].item(), []
    shifts = torch.linspace(-3, 3, 61)
    with torch.no_grad():
        for shift in shifts:
            matrix[row, column] = value + shift
            losses.append(model(inputs, targets).item())
    panel.plot(value + shifts, losses, color="C0")
    panel.plot(value + shifts, loss.item() + slope * shifts, color="C1", linestyle="--", label=f"slope {slope:.3f}")
    panel.plot(value, loss.item(), "o", color=GREY, label="its value")
    panel.set(title="One parameter", xlabel="value of the parameter", ylabel="loss")
    panel.legend()
