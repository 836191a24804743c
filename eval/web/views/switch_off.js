// The model without one of its parts: what becomes of the prompt's loss and of the next token's distribution.

import { row } from "../arrays.js";
import { decimal, element, probabilityRow, scale, signed, tokenLabel } from "../charts.js";
import { colour, heatmap, ink, legend } from "../heatmap.js";

export function render(section, page, state) {
  const { n_layer, n_head } = page.model, { tokens, vocabulary } = page;
  const heads = Array.from({ length: n_head }, (_, head) => `${n_head > 8 ? "" : "head "}${head + 1}`);
  const parts = [...heads, "attention", "MLP", "whole layer"];
  const layers = Array.from({ length: n_layer }, (_, layer) => `${layer + 1}`);
  const choose = (...off) => state.set({ off }), corner = n_head > 8 ? "layer, head" : "layer";
  const changes = heatmap({ label: "Change of the loss without each part: choose one", corner, columns: parts, rows: layers, choose });
  const induction = heatmap({ label: "Induction score of each head: choose one", corner, columns: heads, rows: layers, choose });
  changes.node.classList.add("numbers");
  induction.node.classList.add("numbers");
  const title = element("h3", { "aria-live": "polite" }), summary = element("p", { class: "summary" });
  const before = element("table", { class: "likeliest" }), after = element("table", { class: "likeliest" });
  const list = element("ol", { class: "losses" }), where = element("p", { class: "summary" });
  const ends = element("div");
  section.append(
    element("div", { class: "grids" },
      element("div", { style: wide(parts) }, element("h3", {}, "Loss without it"), changes.node, ends),
      element("div", { style: wide(heads) }, element("h3", {}, "Induction score"), induction.node, legend("attention"))),
    title, summary, where, element("div", { class: "pair" }, before, after),
    element("h3", {}, "The loss of each token of the prompt"), list);

  const partName = ([layer, part]) => (part === n_head + 2 ? `layer ${layer + 1}`
    : `layer ${layer + 1}, ${part < n_head ? `head ${part + 1}` : parts[part] === "MLP" ? "the MLP" : "all its attention"}`);
  const change = (data, layer, part) => mean(row(data.without.loss, layer, part)) - mean(row(data.whole.loss));

  page.watch("switch_off", [], (data) => {
    const found = layers.map((_, layer) => parts.map((_, part) => change(data, layer, part)));
    const largest = Math.max(...found.flat().map(Math.abs), 1e-9);
    ends.replaceChildren(scale("change of the mean loss, in nats", -largest, largest, Math.sqrt));
    found.forEach((values, layer) => values.forEach((value, part) => {
      const cell = changes.cells[layer][part], strength = Math.sqrt(Math.abs(value) / largest);
      cell.textContent = plus(value);
      cell.style.background = signed(0.65 * Math.sign(value) * strength);
      cell.setAttribute("aria-label", `without ${partName([layer, part])}: ${plus(value)} nats`);
    }));
    induction.cells.forEach((cells, layer) => cells.forEach((cell, head) => {
      const score = row(data.induction, layer)[head];
      cell.textContent = score.toFixed(2);
      cell.style.cssText = `background: ${colour(score)}; color: ${ink(score)}`;
      cell.setAttribute("aria-label", `${partName([layer, head])}: ${score.toFixed(3)}`);
    }));
    if (!state.off) { // the head that matters most
      const order = found.flatMap((values, layer) => heads.map((_, head) => [values[head], layer, head]));
      state.off = order.reduce((best, each) => (each[0] > best[0] ? each : best)).slice(1);
    }
  });

  page.watch("switch_off", ["off", "position"], (data) => {
    const [layer, part] = state.off, { position } = state, next = tokens[position + 1]?.id;
    changes.select(layer, part);
    if (part < n_head) induction.select(layer, part);
    title.textContent = `Without ${partName(state.off)}`;
    const [old, now] = [row(data.whole.loss), row(data.without.loss, layer, part)];
    summary.textContent = old.length ? `The mean loss of the prompt's ${old.length} tokens after the first ` +
      `${mean(now) < mean(old) ? "falls" : "rises"} from ${mean(old).toFixed(3)} to ${mean(now).toFixed(3)} nats.`
      : "The prompt is one token: it has no loss, since the first token is not predicted.";
    where.replaceChildren("The next token after ", tokenLabel(tokens[position].text), ` (position ${position + 1}):`);
    const both = [[data.whole, []], [data.without, [layer, part]]].map(([source, place]) => ({
      ids: Array.from(row(source.ids, ...place, position)), probabilities: row(source.probabilities, ...place, position),
    }));
    const longest = Math.max(...both.map(({ probabilities }) => probabilities[0]));
    both.forEach(({ ids, probabilities }, index) => {
      const [table, caption] = [[before, "The whole model"], [after, `Without ${partName(state.off)}`]][index];
      const note = (id) => (id === next ? "in the prompt" : both[1 - index].ids.includes(id) ? "" : index ? "new" : "gone");
      table.replaceChildren(element("caption", {}, caption), element("tbody", {},
        ...ids.map((id, rank) => probabilityRow(vocabulary[id], note(id), probabilities[rank], longest))));
    });

    const largest = Math.max(...Array.from(now, (loss, index) => Math.abs(loss - old[index])), 1e-9);
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...Array.from(now, (loss, index) => element("li", {}, element("button", {
      type: "button", "aria-pressed": `${index === position}`, onclick: () => state.set({ position: index }),
      style: `background: ${signed((0.65 * (loss - old[index])) / largest)}`,
    }, tokenLabel(tokens[index + 1].text), element("span", {}, `${old[index].toFixed(2)} → ${loss.toFixed(2)}`)))));
    if (focused) list.querySelectorAll("button")[position].focus();
  });
}

const wide = (columns) => `flex-basis: ${4 * columns.length + 5}rem`;

const mean = (values) => values.reduce((total, value) => total + value, 0) / Math.max(values.length, 1);

const plus = (value) => decimal(value, 2, true);
