// Layer by layer: what the model would say after each layer, and what each part adds to the examined token's logit.

import { row, unpack } from "../arrays.js";
import { choices, decimal, element, percent, probabilityRow, tokenLabel } from "../charts.js";
import { colour, heatmap, ink, legend } from "../heatmap.js";

const FEW_HEADS = 12; // are all shown at first

export function render(section, page, state) {
  const { n_layer, n_head, softcap } = page.model, { tokens, vocabulary } = page;
  const depths = ["start", ...Array.from({ length: n_layer }, (_, layer) => `${layer + 1}`)];
  state.depth = n_layer; // layers that have been run
  let hovered = null;

  const lens = heatmap({
    label: "The likeliest next token after each position (rows) and each layer (columns)", corner: "after layer",
    columns: depths, rows: tokens.map(({ text }) => tokenLabel(text)),
    choose: (position, depth) => state.set({ position, depth }),
    hover: (cell) => { hovered = cell; drawTop(); },
  });
  lens.node.classList.add("lens");
  const top = element("div", { class: "top", "aria-live": "polite" }), title = element("h3"), chosen = element("div");
  const chart = element("tbody"), total = element("p", { class: "summary" });
  section.append(
    element("h3", {}, "After each layer"),
    element("div", { class: "beside" }, lens.node, element("div", {}, legend("probability"), top)),
    title, chosen,
    element("table", { class: "contributions" },
      element("thead", {}, element("tr", {}, ...["part", "adds", "", "sum so far"].map((name) => element("th", { scope: "col" }, name)))), chart),
    total);

  page.watch("layers", [], ({ lens: { tokens: best, probabilities } }) => {
    lens.cells.forEach((cells, position) => cells.forEach((cell, depth) => {
      const p = row(probabilities, depth, position)[0];
      cell.replaceChildren(tokenLabel(vocabulary[row(best, depth, position)[0]]));
      cell.style.cssText = `background: ${colour(p)}; color: ${ink(p)}`;
    }));
  });

  let drawTop = () => {};
  page.watch("layers", ["position", "depth"], (data) => {
    drawTop = () => {
      const [position, depth] = hovered ?? [state.position, state.depth];
      const best = row(data.lens.tokens, depth, position), next = tokens[position + 1];
      const rows = Array.from(row(data.lens.probabilities, depth, position), (p, index) => [best[index], p, ""]);
      if (next && !best.includes(next.id)) rows.push([next.id, row(data.lens.next_probabilities, depth)[position], "in the prompt"]);
      top.replaceChildren(
        element("p", {}, "After ", tokenLabel(tokens[position].text), ` (position ${position + 1}), ` +
          (depth ? `layer ${depth} of ${n_layer}` : "before the first layer") + (depth === n_layer ? ", the output:" : ":")),
        element("table", { class: "likeliest" }, element("tbody", {},
          ...rows.map(([token, p, note]) => probabilityRow(vocabulary[token], note, p)))));
    };
    lens.select(state.position, state.depth);
    drawTop();
  });

  const open = new Set(n_layer * n_head <= FEW_HEADS ? depths.keys() : []); // layers whose heads are shown
  page.watch("layers", ["position", "token"], (data) => {
    const { position } = state, ids = Array.from(row(data.tokens, position));
    const kept = ids.includes(state.token), place = kept ? ids.indexOf(state.token) : 0, token = ids[place];
    const [, , K] = data.contributions.shape, { values } = unpack(data.contributions);
    const parts = data.parts.map((part, index) => ({ ...part, adds: values[(index * tokens.length + position) * K + place] }));
    title.replaceChildren("What adds to the logit of ", tokenLabel(vocabulary[token]), " after ", tokenLabel(tokens[position].text));
    const group = choices(`Examine the token${kept ? "" : ": the one chosen above is not among the likeliest here"}`, ids.map((id) => tokenLabel(vocabulary[id])), place, (index) => state.set({ token: ids[index] }));
    const focused = chosen.contains(document.activeElement);
    chosen.replaceChildren(group);
    if (focused) group.querySelectorAll("input")[place].focus();
    const draw = (toggled) => {
      chart.replaceChildren(...waterfall(grouped(parts, open), (layer) => {
        if (!open.delete(layer)) open.add(layer);
        draw(layer);
      }));
      chart.querySelector(`[data-layer="${toggled}"]`)?.focus();
    };
    draw();
    const logit = parts.reduce((sum, { adds }) => sum + adds, 0);
    const capped = softcap ? ` The soft cap makes it ${softcap} tanh(${show(logit)} / ${softcap}) = ${show(softcap * Math.tanh(logit / softcap))}.` : "";
    total.textContent = `The sum is the logit${softcap ? " before the cap" : ""}: ${show(logit)}.${capped} ` +
      `Among all tokens, softmax gives it ${percent(row(data.probabilities, position)[place])}.`;
  });
}

// Rows of the chart: attention's heads and bias as one row for each layer, followed by themselves where it is open.
function grouped(parts, open) {
  const rows = [];
  for (const part of parts) {
    const inAttention = part.kind === "head" || part.kind === "bias";
    if (!inAttention) rows.push({ ...part, label: part.layer === null ? part.label : `layer ${part.layer + 1}: ${part.label}` });
    else {
      let group = rows.findLast((found) => found.group);
      if (group?.layer !== part.layer) {
        group = { group: true, layer: part.layer, label: `layer ${part.layer + 1}: attention`, adds: 0, open: open.has(part.layer) };
        rows.push(group);
      }
      group.adds += part.adds;
      if (group.open) rows.push({ ...part, inside: true });
    }
  }
  return rows;
}

// Each part's bar begins where the sum of those above it ended; blue takes away, orange adds.
function waterfall(rows, toggle) {
  let sum = 0, inside = 0;
  const steps = rows.map((part) => {
    const from = part.inside ? inside : sum;
    if (part.group) inside = sum;
    if (part.inside) inside += part.adds;
    else sum += part.adds;
    return { ...part, from, to: from + part.adds };
  });
  const ends = steps.flatMap(({ from, to }) => [from, to]), low = Math.min(0, ...ends), high = Math.max(0, ...ends);
  const x = (value) => (100 * (value - low)) / (high - low || 1);
  return steps.map(({ label, group, open, layer, inside: nested, adds, from, to }) => element("tr", { class: nested ? "nested" : null },
    element("th", { scope: "row" }, group
      ? element("button", { type: "button", "aria-expanded": `${open}`, "data-layer": layer, onclick: () => toggle(layer) }, label) : label),
    element("td", {}, show(adds, true)),
    element("td", {}, element("div", { class: "bar" },
      element("div", { class: "zero", style: `inset-inline-start: ${x(0)}%` }),
      element("div", { class: adds < 0 ? "less" : "more", style: `inset-inline-start: ${x(Math.min(from, to))}%; width: ${x(Math.max(from, to)) - x(Math.min(from, to))}%` }))),
    element("td", {}, show(to))));
}

const show = (value, plus = false) => decimal(value, 3, plus);
