// How the prompt became ids: its pieces, one piece's bytes and merges, and the ids.

import { choices, count, element, tokenLabel } from "../charts.js";

export function render(section, page, state) {
  const stages = element("ol", { class: "stages" }), ids = element("div", { class: "boxes" });
  const pieces = page.checkpoints[0].views.text_to_tokens.pieces;
  if (pieces) {
    const pieceAt = (position) => pieces.findIndex(({ first, count }) => position < first + count);
    const group = choices("1. Cut into pieces; choose one", pieces.map(({ text }) => tokenLabel(text)), pieceAt(state.position),
      (index) => state.set({ position: pieces[index].first }));
    section.append(group, element("h3", {}, "2. Its bytes, merged"), stages);
    state.subscribe(["position"], () => {
      group.select(pieceAt(state.position));
      stages.replaceChildren(...showMerges(pieces[pieceAt(state.position)], page.vocabulary));
    });
  }
  section.append(element("h3", {}, pieces ? "3. What the model reads" : "What the model reads: an id for each character"), ids);
  state.subscribe(["position"], () => {
    ids.replaceChildren(...page.tokens.map(({ id, text }, index) =>
      box({ text, below: count(id), mark: index === state.position ? "fresh" : "" })));
  });
}

// A row for the bytes, and one for each merge, whose new token is marked.
function showMerges({ bytes, merges }, vocabulary) {
  let parts = bytes.map(describeByte);
  const rows = [stage(`${count(bytes.length)} ${bytes.length === 1 ? "byte" : "bytes"}`, parts)];
  for (const [place, id] of merges) {
    parts = parts.map(({ text }) => ({ text }));
    parts.splice(place, 2, { text: vocabulary[id], mark: "fresh" });
    rows.push(stage(`merge ${count(id - 255)}`, parts));
  }
  return rows;
}

function stage(name, parts) {
  return element("li", {}, element("span", {}, name), element("div", { class: "boxes" }, ...parts.map(box)));
}

function box({ text, below, mark }) {
  return element("span", { class: `box ${mark ?? ""}` }, tokenLabel(text), below ? element("small", {}, below) : "");
}

// A byte: its character if it is ASCII, and its number in hexadecimal.
function describeByte(byte) {
  const number = byte.toString(16).padStart(2, "0");
  return byte < 128 ? { text: String.fromCharCode(byte), below: number } : { text: `\\x${number}` };
}
