// Attention: a map of every head, one of them large, and the sum behind each of its cells.

import { row } from "../arrays.js";
import { element, magnitude, percent, signed, tokenLabel } from "../charts.js";
import { colour, heatmap, ink, legend } from "../heatmap.js";
import { argmax } from "../sampling.js";

const PALETTE = Array.from({ length: 256 }, (_, index) => magnitude(Math.sqrt(index / 255)).match(/\d+/g).map(Number));
const TERMS = 5; // of a sum, written out

export function render(section, page, state) {
  const { n_layer, n_head } = page.model, names = page.tokens.map(({ text }) => tokenLabel(text));
  Object.assign(state, { layer: 0, head: 0, cell: [-1, 0] }); // cell: a query's position and a key's
  let hovered = null;

  const overview = heatmap({
    label: "All heads: choose one", corner: "layer",
    columns: numbers(n_head).map((head) => element("span", { title: `head ${head + 1}` }, `${head + 1}`)),
    rows: numbers(n_layer).map((layer) => `${layer + 1}`),
    choose: (layer, head) => state.set({ layer, head }),
  });
  overview.node.classList.add("overview");
  const large = heatmap({
    label: "The weights of one head, from each position (rows) to each earlier one (columns)",
    columns: names.map((name) => name.cloneNode(true)), rows: names,
    choose: (i, j) => state.set({ position: i, cell: [i, j] }),
    hover: (cell) => { hovered = cell; drawSum(); },
  });
  large.node.classList.add("large");
  const title = element("h3"), look = element("div", { class: "look" }), sum = element("div", { class: "sum" });
  section.append(
    element("div", { class: "heads" },
      element("div", {}, element("h3", {}, "Every head"), overview.node, legend("weight")), look,
      element("div", {}, title, large.node), sum));

  page.watch("attention", [], (data) => {
    overview.cells.forEach((cells, layer) => cells.forEach((cell, head) => {
      cell.replaceChildren(picture(row(data.weights, layer, head), names.length));
      cell.setAttribute("aria-label", `layer ${layer + 1}, head ${head + 1}`);
    }));
  });
  page.watch("attention", ["layer", "head"], (data) => {
    overview.select(state.layer, state.head);
    title.textContent = `Layer ${state.layer + 1}, head ${state.head + 1}`;
    large.cells.forEach((cells, i) => cells.forEach((cell, j) => {
      const weight = row(data.weights, state.layer, state.head, i)[j];
      cell.className = j > i ? "masked" : "";
      cell.style.background = j > i ? "" : colour(weight);
      cell.setAttribute("aria-label", j > i ? "masked" : percent(weight));
    }));
  });
  let drawSum = () => {};
  page.watch("attention", ["layer", "head", "position", "cell"], (data) => {
    const weights = row(data.weights, state.layer, state.head, state.position);
    const key = state.cell[0] === state.position ? state.cell[1] : argmax(weights);
    large.select(state.position, key);
    look.replaceChildren(...whereItLooks(page, weights, state.position));
    drawSum = () => sum.replaceChildren(...explain(page, data, state.layer, state.head, ...(hovered ?? [state.position, key])));
    drawSum();
  });
}

const numbers = (length) => Array.from({ length }, (_, index) => index);

// All weights of a head as pixels, (T, T).
function picture(weights, length) {
  const canvas = element("canvas", { width: length, height: length });
  const image = new ImageData(length, length);
  weights.forEach((weight, index) => {
    if (index % length <= Math.floor(index / length)) image.data.set([...PALETTE[Math.round(255 * weight)], 255], 4 * index);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// The prompt up to a position, coloured by the position's weights.
function whereItLooks(page, weights, position) {
  const seen = page.tokens.slice(0, position + 1);
  const most = numbers(seen.length).sort((a, b) => weights[b] - weights[a]).slice(0, 4);
  const shares = most.flatMap((key, index) => [index ? ", " : "", tokenLabel(seen[key].text), ` ${percent(weights[key])}`]);
  return [
    element("h3", {}, "Where does ", tokenLabel(seen[position].text), ` (position ${position + 1}) look?`),
    element("p", { class: "looks" }, ...seen.map(({ text }, key) =>
      element("span", { style: `background: ${colour(weights[key])}; color: ${ink(weights[key])}`, title: percent(weights[key]) },
        tokenLabel(text)))),
    element("p", { class: "summary" }, "Mostly at ", ...shares, "."),
  ];
}

// The cell's sum in numbers: the score, the mask, the softmax and the weighted value.
function explain(page, data, layer, head, i, j) {
  const [q, k, v] = [row(data.q, layer, head, i), row(data.k, layer, head, j), row(data.v, layer, head, j)];
  const width = q.length, products = q.map((value, index) => value * k[index]);
  const scores = row(data.scores, layer, head, i), weights = row(data.weights, layer, head, i);
  const largest = Math.max(...scores.subarray(0, i + 1));
  const exponentials = Array.from(scores.subarray(0, i + 1), (score) => Math.exp(score - largest));
  const denominator = exponentials.reduce((total, value) => total + value, 0);
  const added = v.map((value) => weights[j] * value);
  const output = v.map((_, index) =>
    numbers(i + 1).reduce((total, key) => total + weights[key] * row(data.v, layer, head, key)[index], 0));
  const changes = [page.model.rotary && "rotated by their positions", page.model.qk_norm && "normalized"].filter(Boolean);
  const changed = changes.length ? ` Both have been ${changes.join(" and ")}.` : "";
  const [from, to] = [i, j].map((position) => [tokenLabel(page.tokens[position].text), ` (position ${position + 1})`]);
  const step = (name, ...content) => element("li", {}, element("h4", {}, name), ...content);
  const steps = [
    step("Score", element("p", {},
      `What position ${i + 1} asks for, its query, times what position ${j + 1} offers, its key, number by number. ` +
      `The sum is divided by √${width}, the root of their length.${changed}`),
      strips([["query", q], ["key", k]]), strips([["q × k", products]]),
      everyProduct(q, k, products),
      formula("q · k", `= ${longSum(products)} = ${show(scores[j] * Math.sqrt(width))}`),
      formula("score", `= ${show(scores[j] * Math.sqrt(width))} / √${width} = ${show(scores[j])}`)),
    step("Mask", element("p", {}, j > i
      ? "The key is later than the query: its score becomes −∞ and its weight 0, so that no position sees what it must predict."
      : "The key is not later than the query: the score stays.")),
  ];
  if (j <= i) {
    steps.push(
      step("Softmax", element("p", {}, `Over the ${i + 1} position${i ? "s" : ""} that are not masked; the largest of their scores is ${show(largest)}.`),
        formula("exponential", `= e^(${show(scores[j])} − ${show(largest).replace("−", "(−")}${largest < 0 ? ")" : ""}) = ${show(exponentials[j])}`),
        formula("denominator", `= ${longSum(exponentials)} = ${show(denominator)}`),
        formula("weight", `= ${show(exponentials[j])} / ${show(denominator)} = ${percent(weights[j])}`)),
      step("Weighted value", element("p", {}, "The key's position adds its value, times the weight, to the head's output."),
        strips([["value", v], ["weight × value", added], ["output", output]]),
        formula("length", `of what it adds ${show(Math.hypot(...added))}, of the output ${show(Math.hypot(...output))}`)));
  }
  return [
    element("h3", { "aria-live": "polite" }, "From ", ...from, " to ", ...to, `: ${percent(weights[j])}`),
    element("ol", { class: "steps" }, ...steps),
  ];
}

const formula = (name, text) => element("p", { class: "formula" }, element("b", {}, name), ` ${text}`);

// Three digits after the point, or three significant ones; a real minus sign.
function show(value) {
  const text = value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(Math.abs(value) < 100 ? 3 : 1);
  return text.replaceAll("-", "−");
}

// The largest terms, and how many more there are.
function longSum(values) {
  const order = Array.from(values).sort((a, b) => Math.abs(b) - Math.abs(a));
  const terms = order.slice(0, TERMS).map((value, index) => (value < 0 ? "− " : index ? "+ " : "") + show(Math.abs(value)));
  const more = order.length - TERMS;
  return terms.join(" ") + (more > 0 ? ` + … (${more} more)` : "");
}

let opened = false; // the table, which stays open from cell to cell

function everyProduct(q, k, products) {
  const line = (tag, ...texts) => element("tr", {}, ...texts.map((text) => element(tag, {}, text)));
  const table = () => element("table", {},
    element("thead", {}, line("th", "", "query", "key", "q × k")),
    element("tbody", {}, ...numbers(q.length).map((index) =>
      line("td", `${index + 1}`, ...[q, k, products].map((values) => show(values[index]))))));
  const details = element("details", { open: opened, ontoggle: () => {
    opened = details.open;
    if (opened && details.children.length === 1) details.append(table());
  } }, element("summary", {}, `All ${q.length} products`));
  return details;
}

// Vectors as rows of signed colours on one scale, each number in a tooltip.
function strips(vectors) {
  const limit = Math.max(...vectors.flatMap(([, values]) => Array.from(values, Math.abs)), 1e-9);
  return element("div", { class: "strips" }, ...vectors.flatMap(([name, values]) => [
    element("span", {}, name),
    element("div", { role: "img", "aria-label": `${name}: ${values.length} numbers from ${show(Math.min(...values))} to ${show(Math.max(...values))}` },
      ...Array.from(values, (value, index) =>
        element("i", { style: `background: ${signed(value / limit)}`, title: `${index + 1}: ${show(value)}` }))),
  ]));
}
