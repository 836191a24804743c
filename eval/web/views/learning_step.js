// One step of learning: for each layer and kind of matrix the gradient's norm, and how far the optimizer moves it.

import { bar, count, element, facts } from "../charts.js";

const KINDS = [["attn.c_attn", "queries, keys, values"], ["attn.c_proj", "attention's output"], ["mlp.c_fc", "into the MLP"],
  ["mlp.c_proj", "out of the MLP"], ["biases and norms", "biases and norms"]];
const OUTSIDE = { wte: "token embedding", wpe: "position embedding", lm_head: "output head", "biases and norms": "final norm" };
const TITLES = { gradient: "The gradient's norm", change: "The change: its norm, relative to that of the weights" };

export function render(section, page) {
  const numbers = element("dl"), note = element("p", { class: "summary" });
  const tables = ["gradient", "change"].map((quantity) => ({ quantity, table: element("table", { class: "matrices" }) }));
  section.append(numbers, note, ...tables.map(({ quantity, table }) =>
    element("div", {}, element("h3", {}, TITLES[quantity]),
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": TITLES[quantity] }, table))));

  page.watch("learning_step", [], (data) => {
    const { step } = page.checkpoints.find(({ views }) => views.learning_step === data);
    const clipped = data.grad_clip && data.grad_norm > data.grad_clip;
    const rows = [["this batch's loss before", `${data.before.toFixed(4)} nats`], ["after", `${data.after.toFixed(4)} nats`],
      ["gradient's norm", data.grad_norm.toPrecision(3)], ["learning rate", data.lr.toPrecision(3)],
      ["optimizer", { muon: "Muon", adamw: "AdamW" }[data.optimizer]]];
    numbers.replaceChildren(...facts(rows));
    note.textContent = (data.ends
      ? `The run ends after step ${count(step)}: this is one step more, with its last learning rate above 0. `
      : `Step ${count(step + 1)} of the run. `) +
      (data.tokens < data.batch_tokens ? `It takes ${count(data.tokens)} of the batch's ${count(data.batch_tokens)} tokens. `
        : `The batch has ${count(data.tokens)} tokens. `) +
      (clipped ? `Clipping scales all gradients down to a norm of ${data.grad_clip}.`
        : data.grad_clip ? `The gradient's norm is at most ${data.grad_clip}: nothing is clipped.` : "");
    const inLayers = KINDS.filter(([kind]) => data.matrices.some(({ layer, name }) => layer !== null && name === kind));
    const outside = data.matrices.filter(({ layer }) => layer === null);
    for (const { quantity, table } of tables) {
      const largest = Math.max(...data.matrices.map((each) => each[quantity] ?? 0));
      const header = (columns) => element("tr", {}, element("th"),
        ...columns.map(([name, text]) => element("th", { scope: "col" }, text, text === name ? "" : element("code", {}, name))));
      const line = (label, cells) => element("tr", {}, element("th", { scope: "row" }, label), ...cells.map((each) =>
        element("td", {}, show(quantity, each[quantity]), bar((each[quantity] ?? 0) / largest))));
      table.replaceChildren(
        element("thead", {}, header(inLayers)),
        element("tbody", {}, ...Array.from({ length: page.model.n_layer }, (_, layer) => line(`layer ${layer + 1}`,
          inLayers.map(([kind]) => data.matrices.find((each) => each.layer === layer && each.name === kind))))),
        element("tbody", {}, header(outside.map(({ name }) => [name, OUTSIDE[name]])), line("outside", outside)));
    }
  });
}

function show(quantity, value) {
  if (value === null) return "from zero";
  return quantity === "change" ? `${(100 * value).toPrecision(2)}%` : value.toPrecision(2);
}
