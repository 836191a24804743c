// The list of models, which is asked for again every few seconds, and the choice of one of them with what is known of it.

import { count, element, facts } from "../charts.js";
import { getBlob, getJson, Problem } from "./api.js";

const SECONDS = 4; // between two looks at the list, while the page is visible
const KINDS = { instructions: "answers instructions", classifier: "classifies texts" };

// Keep state.models up to date. Returns a function that asks for the list at once.
export function watchModels(state) {
  let asking = null;
  const refresh = () => {
    asking ??= getJson("/v1/models")
      .then(({ data }) => state.set({ models: data, offline: "" }))
      .catch((failure) => {
        if (!(failure instanceof Problem)) throw failure;
        state.set({ offline: failure.message });
      })
      .finally(() => { asking = null; });
    return asking;
  };
  setInterval(() => document.hidden || refresh(), 1000 * SECONDS);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  return refresh;
}

// A checkpoint NAME@STEP belongs to the model NAME.
function parentOf({ id }, ids) {
  const name = id.replace(/@\d+$/, "");
  return ids.has(name) ? name : id;
}

// The choice of a model and a checkpoint, with what is known of it. Returns { node, model, update }: update() takes over a
// new list; `model` has the id alone when it has been deleted. onChange(news) is called when another one is chosen, with
// "", and with what happened to the files of this one.
export function drawChooser(state, selected, onChange, ...buttons) {
  const about = element("dl"), curves = element("div", { class: "curves" });
  const picture = element("details", { ontoggle: () => showPicture() }, element("summary", {}, "Loss curves"), curves);
  const names = select("Model", choose), checkpoints = select("Checkpoint", choose);
  const node = element("div", { class: "chooser" },
    element("div", { class: "selects" }, names.label, checkpoints.label, ...buttons), about, picture);
  const chooser = { node, update, model: state.models.find(({ id }) => id === selected) ?? { id: selected } };
  let shown = ""; // the picture's model and fingerprint

  function choose(id) {
    chooser.model = state.models.find((model) => model.id === id) ?? { id };
    draw();
    onChange("");
  }

  function draw() {
    const ids = new Set(state.models.map(({ id }) => id)), { model } = chooser;
    const parent = parentOf(model, ids), deleted = model.id && !ids.has(model.id);
    const all = [...new Set(state.models.map((each) => parentOf(each, ids)))];
    const steps = state.models.filter((each) => each.id !== parent && parentOf(each, ids) === parent);
    names.fill([...(ids.has(parent) || !model.id ? [] : [[model.id, `${model.id} (deleted)`]]), ...all.map((name) => [name, name])], parent);
    checkpoints.fill([
      ...(deleted ? [[model.id, "deleted"]] : []),
      ...(ids.has(parent) ? [[parent, "the latest"]] : []),
      ...steps.sort((a, b) => b.step - a.step).map(({ id, step }) => [id, step ? `step ${count(step)}` : id]),
    ], model.id);
    checkpoints.label.hidden = !steps.length && !deleted;
    const loss = (value) => value && value.toFixed(4);
    about.replaceChildren(...facts([
      ["kind", model.multi_turn ? "holds conversations" : KINDS[model.kind]], ["state", model.state], ["step", model.step && count(model.step)],
      ["last training loss", loss(model.train_loss)], ["last validation loss", loss(model.val_loss)],
      ["context", model.block_size && `${count(model.block_size)} tokens`],
    ].filter(([, value]) => value)));
    picture.hidden = !model.picture;
    showPicture();
  }

  async function showPicture() {
    const { id, fingerprint } = chooser.model;
    if (!picture.open || picture.hidden || shown === `${id} ${fingerprint}`) return;
    shown = `${id} ${fingerprint}`;
    const path = `/v1/models/${id.split("/").map(encodeURIComponent).join("/")}/loss.png`;
    const content = await getBlob(path).catch(() => null); // with the token, which an <img> would not send
    if (shown !== `${id} ${fingerprint}` || !content) return;
    const image = element("img", { alt: `Loss, learning rate and throughput of ${id}`, src: URL.createObjectURL(content) });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    curves.replaceChildren(image);
  }

  function update() {
    const { model } = chooser, wanted = model.id || state.models[0]?.id, now = state.models.find(({ id }) => id === wanted);
    chooser.model = now ?? { id: model.id };
    draw();
    if (!now && model.fingerprint) {
      onChange(`${model.id} is no longer there: it was deleted or renamed. Choose another model or checkpoint.`);
    } else if (now && model.fingerprint && now.fingerprint !== model.fingerprint) {
      onChange(now.step > model.step ? `A newer checkpoint was saved, of step ${count(now.step)}: the next text comes from it.`
        : `The files of ${model.id} were replaced: the next text comes from the new ones.`);
    }
  }

  draw();
  return chooser;
}

// A labelled <select>, which is filled again only when its options change, so that one that is open stays open.
function select(label, onChange) {
  const input = element("select", { onchange: () => onChange(input.value) });
  let filled = "";
  return {
    label: element("label", {}, element("span", {}, label), input),
    fill(options, value) {
      if (filled !== JSON.stringify(options)) {
        filled = JSON.stringify(options);
        input.replaceChildren(...options.map(([id, text]) => element("option", { value: id }, text)));
      }
      input.value = value;
    },
  };
}
