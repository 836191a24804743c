// The next token's distribution at the selected position, and what temperature, top-k, top-p and min-p make of it.

import { row } from "../arrays.js";
import { bar, count, element, percent, slider, tokenLabel } from "../charts.js";
import { byLikelihood, distribution, entropyInBits, softmax } from "../sampling.js";

const ROWS = 12;
const SLIDERS = [
  ["Temperature", "temperature", { min: 0, max: 2, step: 0.05, value: 1, show: (value) => value.toFixed(2) }],
  ["Top-k", "topK", { min: 0, max: 100, value: 0, show: (value) => (value ? `${value}` : "all") }],
  ["Top-p", "topP", { min: 0.01, max: 1, step: 0.01, value: 1, show: (value) => value.toFixed(2) }],
  ["Min-p", "minP", { min: 0, max: 1, step: 0.01, value: 0, show: (value) => value.toFixed(2) }],
];

export function render(section, page, state) {
  state.sampling = Object.fromEntries(SLIDERS.map(([, key, { value }]) => [key, value]));
  const sliders = SLIDERS.map(([label, key, options]) =>
    slider(label, options, (value) => state.set({ sampling: { ...state.sampling, [key]: value } })));
  const caption = element("caption"), rows = element("tbody"), summary = element("p", { class: "summary", "aria-live": "polite" });
  section.append(
    element("div", { class: "sliders" }, ...sliders),
    element("table", { class: "bars" }, caption,
      element("thead", {}, element("tr", {}, ...["rank", "token", "probability", "logit"].map((name) =>
        element("th", { scope: "col", colspan: name === "probability" ? 2 : null }, name)))),
      rows),
    summary);

  page.watch("next_token", ["position", "token", "sampling"], (data) => {
    const logits = row(data.logits, state.position);
    const alone = softmax(logits), drawn = distribution(logits, state.sampling), order = byLikelihood(logits);
    const next = page.tokens[state.position + 1]?.id;
    const shown = order.slice(0, ROWS);
    for (const token of [next, state.token]) if (token !== undefined && !shown.includes(token)) shown.push(token);
    const longest = Math.max(alone[order[0]], ...shown.map((token) => drawn[token]));
    rows.replaceChildren(...shown.map((token) => {
      const button = element("button", {
        type: "button", "aria-pressed": `${token === state.token}`, title: `token ${token}`, onclick: () => state.set({ token }),
      }, tokenLabel(page.vocabulary[token]));
      const outline = element("div", { class: "outline", style: `width: ${(100 * alone[token]) / longest}%` });
      return element("tr", { "data-token": token, class: drawn[token] ? null : "cut" },
        element("td", {}, count(order.indexOf(token) + 1)),
        element("th", { scope: "row" }, button, token === next ? element("small", {}, "in the prompt") : ""),
        element("td", {}, bar(drawn[token] / longest, outline)), element("td", { class: "probability" }, percent(drawn[token])),
        element("td", {}, logits[token].toFixed(2)));
    }));
    caption.replaceChildren("After ", tokenLabel(page.tokens[state.position].text), ` (position ${state.position + 1})`);
    const left = drawn.reduce((total, p) => total + (p > 0), 0);
    summary.textContent = `${count(left)} of ${count(logits.length)} tokens can be drawn. Entropy: ` +
      `${entropyInBits(drawn).toFixed(2)} bits; ${entropyInBits(alone).toFixed(2)} bits at temperature 1 without cuts ` +
      "(the outlines).";
  });
}
