// The sampling settings, named as in the API; their defaults are those of eval/generate.py.

import { element, slider } from "../charts.js";

const decimals = (value) => value.toFixed(2);
const SLIDERS = {
  temperature: ["Temperature", { min: 0, max: 2, step: 0.05, value: 1, show: decimals }],
  max_tokens: ["Length", { min: 1, max: 1000, value: 200, show: (value) => `${value} tokens` }],
  top_k: ["Top-k", { min: 0, max: 200, value: 50, show: (value) => (value ? `${value}` : "all") }],
  top_p: ["Top-p", { min: 0.01, max: 1, step: 0.01, value: 1, show: decimals }],
  min_p: ["Min-p", { min: 0, max: 1, step: 0.01, value: 0, show: decimals }],
  repetition_penalty: ["Repetition penalty", { min: 1, max: 2, step: 0.05, value: 1, show: decimals }],
};
const FIRST = 2; // of them, the others are under "More settings"

// Draw the settings. `given`: values by name, of which those that are numbers count. Returns the values, which follow
// the inputs.
export function drawSettings(given) {
  const values = { seed: 1337 };
  for (const [key, [, { value }]] of Object.entries(SLIDERS)) values[key] = value;
  for (const key of Object.keys(values)) {
    if (given.get(key)?.trim() && Number.isFinite(+given.get(key))) values[key] = +given.get(key);
  }
  const sliders = Object.entries(SLIDERS).map(([key, [label, options]]) =>
    slider(label, { ...options, value: values[key] }, (value) => { values[key] = value; }));
  const seed = element("input", {
    id: "seed", type: "number", step: 1, min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, required: true,
    onchange: () => { if (seed.checkValidity()) values.seed = seed.valueAsNumber; },
  });
  seed.value = values.seed;
  const fresh = element("button", {
    type: "button",
    onclick: () => {
      seed.value = Math.floor(Math.random() * 1e6);
      seed.dispatchEvent(new Event("change", { bubbles: true }));
    },
  }, "New seed");
  document.getElementById("settings").append(...sliders.slice(0, FIRST),
    element("div", { class: "seed" }, element("label", { for: "seed" }, "Seed"), seed, fresh));
  document.getElementById("more").append(...sliders.slice(FIRST));
  return values;
}
