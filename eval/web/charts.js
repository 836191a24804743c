// What the views are made of: elements, sliders, choices, texts of tokens, numbers and colours.

const SVG = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline"]);

// An HTML or SVG element. Children that are strings become text and are never parsed as HTML; an attribute on... is a
// listener; one that is null or false is left out.
export function element(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value; // as an attribute, a content security policy may forbid it
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// A labelled slider with its value after it; `show` turns the value into text. Returns the label, with `select(value)`.
export function slider(label, { min, max, step = 1, value, show = String }, onInput) {
  const output = element("output"), input = element("input", { type: "range", min, max, step });
  const select = (value) => {
    input.value = value;
    output.textContent = show(value);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    select(input.valueAsNumber);
    onInput(input.valueAsNumber);
  });
  select(value);
  return Object.assign(element("label", { class: "slider" }, element("span", {}, label), input, output), { select });
}

// A list of names and values.
export function facts(pairs) {
  return pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, `${value}`)));
}

// A bar that fills a share of its place, with other marks over it.
export function bar(share, ...marks) {
  return element("div", { class: "bar" }, element("div", { class: "fill", style: `width: ${100 * share}%` }), ...marks);
}

// A row of a table of tokens: the token, a note if it is not empty, its probability as a bar and in numbers.
export function probabilityRow(text, note, p, longest = 1) {
  return element("tr", {},
    element("th", { scope: "row" }, tokenLabel(text), note && element("small", {}, note)),
    element("td", {}, bar(p / longest)),
    element("td", {}, percent(p)));
}

let groups = 0;

// One of several labels (strings or nodes), which arrow keys move along. Returns the group, with `select(index)`.
export function choices(legend, labels, selected, onChange) {
  const name = `choice-${groups++}`;
  const inputs = labels.map((_, index) =>
    element("input", { type: "radio", name, checked: index === selected, onchange: () => onChange(index) }));
  const group = element("fieldset", { class: "choices" }, element("legend", {}, legend),
    ...labels.map((label, index) => element("label", {}, inputs[index], element("span", {}, label))));
  return Object.assign(group, {
    select(index) {
      inputs[index].checked = true;
      scrollToMiddle(group, inputs[index].nextSibling);
    },
  });
}

// Scroll an element sideways until one of its descendants is in its middle, or as far as it goes.
export function scrollToMiddle(scrolled, descendant) {
  const [outer, inner] = [scrolled, descendant].map((node) => node.getBoundingClientRect());
  scrolled.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
}

// A listener of keydown, which calls move(rows, columns) with the step of an arrow key, Home or End.
export function arrowKeys(move) {
  return (event) => {
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(...step);
  };
}

const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity],
};

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// A token's text with what is invisible made visible: spaces, line ends, tabs, control characters.
export function tokenLabel(text) {
  const label = element("bdi", { class: "token" });
  for (const part of text.split(/([\u0000-\u0020\u007f-\u00a0\u00ad\u200b-\u200f\u2028\u2029\ufeff])/)) {
    if (part.length === 1 && part in SYMBOLS) label.append(element("i", {}, SYMBOLS[part]));
    else if (/^[\u0000-\u001f]$/.test(part)) label.append(element("i", {}, String.fromCharCode(0x2400 + part.charCodeAt(0))));
    else if (/^[\u007f-\u00a0\u00ad\u200b-\u200f\u2028\u2029\ufeff]$/.test(part)) {
      label.append(element("i", {}, `U+${part.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
    } else if (part) label.append(part);
  }
  if (!text) label.append(element("i", {}, "empty"));
  return label;
}

const SYMBOLS = { " ": "␣", "\n": "↵", "\t": "⇥" };

export function percent(p) {
  if (p === 0 || p >= 0.00005) return `${(100 * p).toFixed(2)}%`;
  return `${Number((100 * p).toPrecision(1))}%`;
}

// A number with a real minus sign, and a plus sign on request.
export function decimal(value, digits, plus = false) {
  const text = Math.abs(value).toFixed(digits), zero = Number(text) === 0;
  return (zero ? "" : value < 0 ? "−" : plus ? "+" : "") + text;
}

export function count(n) {
  return n.toLocaleString("en-US");
}

// The colour of a magnitude from 0 to 1: dark blue over grey to yellow, which the colour-blind tell apart as well
// (after cividis: Nunez, Anderton and Renslow 2018).
export function magnitude(t) {
  const place = clamp(t, 0, 1) * (CIVIDIS.length - 1), index = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const mixed = CIVIDIS[index].map((low, channel) => low + (CIVIDIS[index + 1][channel] - low) * (place - index));
  return `rgb(${mixed.map(Math.round).join(" ")})`;
}

// The colour of text on magnitude(t): its contrast is 4.5 or more.
export function inkOn(t) {
  return t > 0.47 ? "#000" : "#fff";
}

const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];

// The colour of a signed number from -1 to 1: blue below 0, orange above; transparent at 0, so that it suits dark and light.
export function signed(t) {
  const strength = Math.min(Math.abs(t), 1).toFixed(3);
  return t < 0 ? `rgb(38 112 201 / ${strength})` : `rgb(226 114 18 / ${strength})`;
}

// The scale of signed colours from `low` (0 or below) to `high`, strongest at the ends. `bend` is applied to shares.
export function scale(label, low, high, bend = (t) => t) {
  const largest = Math.max(-low, high);
  const stops = Array.from({ length: 11 }, (_, index) => low + ((high - low) * index) / 10)
    .map((value) => signed(0.7 * Math.sign(value) * bend(Math.abs(value) / largest)));
  return element("div", { class: "scale" }, label, element("div", { style: `background: linear-gradient(to right, ${stops})` }),
    element("div", {}, ...[low, ...(low < 0 ? [0] : []), high].map((value) => element("span", {}, decimal(value, 2, low < 0)))));
}
