// The page: its header, the bar with the prompt and the checkpoints, and a section for each view.

import { row } from "./arrays.js";
import { choices, count, element, facts, slider, tokenLabel } from "./charts.js";
import { argmax } from "./sampling.js";
import { createState } from "./state.js";

const page = JSON.parse(document.getElementById("data").textContent);
const state = createState({ checkpoint: page.checkpoints.length - 1, position: page.tokens.length - 1, token: 0 });

// Call draw(data) now and after each change of the checkpoint or one of the keys, where the view has data.
page.watch = (view, keys, draw) => {
  state.subscribe(["checkpoint", ...keys], () => {
    const data = page.checkpoints[state.checkpoint].views[view];
    if (!data.unavailable) draw(data);
  });
};

// The examined token: at first the one that follows in the prompt, or after its end the most likely one.
state.subscribe(["position"], () => {
  const next = page.tokens[state.position + 1];
  const { logits } = page.checkpoints[state.checkpoint].views.next_token;
  state.set({ token: next ? next.id : argmax(row(logits, state.position)) });
});

document.title = page.title;
document.getElementById("top").append(header());
fillBar(document.getElementById("bar"));
for (const [number, view] of page.views.entries()) {
  const { render } = await import(`./views/${view.key}.js`);
  const body = element("div", { class: "body" });
  const reason = element("p", { class: "unavailable" });
  document.getElementById("views").append(
    element("section", { id: view.key, "aria-labelledby": `${view.key}-title` },
      element("h2", { id: `${view.key}-title` }, element("span", { class: "number" }, `${number + 1}`), view.title),
      element("p", { class: "paragraph" }, view.paragraph),
      reason, body,
      element("p", { class: "source" }, "Computed by ", element("code", {}, view.function), " in ", element("code", {}, view.file))));
  state.subscribe(["checkpoint"], () => {
    reason.textContent = page.checkpoints[state.checkpoint].views[view.key].unavailable ?? "";
    reason.hidden = !reason.textContent;
    body.hidden = !reason.hidden;
  });
  render(body, page, state);
}
document.documentElement.dataset.ready = "true"; // all views are drawn

function header() {
  const { name, architecture, n_layer, n_head, n_embd, block_size, vocab_size, parameters } = page.model;
  const kind = architecture === "gpt2" ? "GPT-2" : "GPT-2 made modern";
  const shape = [["parameters", count(parameters)], ["architecture", kind], ["layers", n_layer], ["heads per layer", n_head],
    ["width", n_embd], ["context", `${count(block_size)} tokens`], ["vocabulary", `${count(vocab_size)} tokens`]];
  const links = page.views.map((view) => element("li", {}, element("a", { href: `#${view.key}` }, view.title)));
  return element("div", {},
    element("p", { class: "eyebrow" }, "A language model at work"),
    element("h1", {}, name),
    element("dl", {}, ...facts(shape)),
    element("nav", { "aria-label": "Views" }, element("ol", {}, ...links)));
}

// The prompt, and the checkpoints if there are several.
function fillBar(bar) {
  const tokens = choices("Prompt: choose a position", page.tokens.map(({ text }) => tokenLabel(text)), state.position,
    (position) => state.set({ position }));
  tokens.classList.add("prompt");
  bar.append(tokens); // first: what is not on the page yet cannot scroll
  state.subscribe(["position"], () => tokens.select(state.position));
  if (page.checkpoints.length < 2) return;
  const show = (index) => {
    const { step, trained_tokens } = page.checkpoints[index];
    return `step ${count(step)}` + (trained_tokens === null ? "" : `, ${count(trained_tokens)} tokens`);
  };
  const checkpoints = slider("Checkpoint", { min: 0, max: page.checkpoints.length - 1, value: state.checkpoint, show },
    (checkpoint) => state.set({ checkpoint }));
  bar.append(checkpoints);
  state.subscribe(["checkpoint"], () => checkpoints.select(state.checkpoint));
}
