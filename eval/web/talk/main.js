// The page of eval/serve.py: one or two panes on the same prompt and settings, which the address keeps.

import { element } from "../charts.js";
import { createState } from "../state.js";
import { watchModels } from "./models.js";
import { createPane } from "./pane.js";
import { drawSettings } from "./settings.js";
import { legend } from "./tokens.js";

const [form, prompt, stop, compare, offline, none] = ["form", "prompt", "stop", "compare", "offline", "none"].map((id) => document.getElementById(id));
const state = createState({ models: [], offline: "", running: 0 });
const refresh = watchModels(state);
const given = new URLSearchParams(location.hash.slice(1));
const settings = drawSettings(given);
const panes = [];
let asked = ""; // the last prompt

prompt.value = given.get("prompt") ?? "";
document.getElementById("guide").append(legend());
await refresh();
const selected = given.getAll("model").slice(0, 2);
for (const id of selected.length ? selected : [state.models[0]?.id ?? ""]) addPane(id);

state.subscribe(["models", "offline"], () => {
  offline.textContent = state.offline;
  offline.hidden = !state.offline;
  none.hidden = state.models.length || state.offline;
});
state.subscribe(["models"], () => {
  panes.forEach(({ chooser }) => chooser.update());
  document.querySelector("main").hidden = !panes[0].chooser.model.id;
});
state.subscribe(["running"], () => { stop.disabled = !state.running; });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  asked = prompt.value;
  remember();
  if (panes.every(({ chooser }) => chooser.model.kind === "instructions")) prompt.value = "";
  panes.forEach((pane) => pane.send(asked));
  document.getElementById("guide").hidden = panes.every(({ chooser }) => chooser.model.kind === "classifier");
});
form.addEventListener("change", remember);
stop.addEventListener("click", stopAll);
compare.addEventListener("click", () => addPane(panes[0].chooser.model.id).chooser.node.querySelector("select").focus());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  if (event.key === "Escape") stopAll();
});
describePrompt();
document.documentElement.dataset.ready = "true";

function addPane(id) {
  const explain = element("button", { type: "button", class: "explain", onclick: () => pane.explain(prompt.value || asked) }, "Explain ↗");
  const close = element("button", { type: "button", "aria-label": "Remove this model", onclick: () => removePane(pane) }, "Remove");
  const pane = createPane({ state, settings, selected: id, refresh, onChoose: describePrompt, buttons: panes.length ? [explain, close] : [explain] });
  panes.push(pane);
  document.getElementById("choosers").append(pane.chooser.node);
  document.getElementById("answers").append(pane.node);
  compare.hidden = panes.length === 2;
  remember();
  return pane;
}

function removePane(pane) {
  pane.stop();
  pane.chooser.node.remove();
  pane.node.remove();
  panes.splice(panes.indexOf(pane), 1);
  compare.hidden = false;
  compare.focus();
  describePrompt();
}

function stopAll() {
  panes.forEach((pane) => pane.stop());
}

// What the prompt is to the chosen models, and what a classifier does not need.
function describePrompt() {
  const kinds = new Set(panes.map(({ chooser }) => chooser.model.kind));
  const [label, placeholder] = kinds.size > 1 ? ["Prompt", ""]
    : kinds.has("instructions") ? ["Message", "Ask a question, or say what to do."]
      : kinds.has("classifier") ? ["Text", "A text to label."]
        : ["Prompt", "The beginning of a text, such as “ROMEO:”. With none, the model begins one."];
  form.querySelector("label").textContent = label;
  prompt.placeholder = placeholder;
  document.getElementById("sampling").hidden = label === "Text";
  panes.forEach(({ chooser: { node, model } }) => { node.querySelector(".explain").hidden = model.kind === "classifier"; });
  document.getElementById("send").firstChild.textContent = label === "Text" ? "Classify " : label === "Message" ? "Send " : "Generate ";
  remember();
}

function remember() {
  const models = panes.map(({ chooser }) => ["model", chooser.model.id]);
  history.replaceState(null, "", `#${new URLSearchParams([...models, ["prompt", prompt.value], ...Object.entries(settings)])}`);
}
