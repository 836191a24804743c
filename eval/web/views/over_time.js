// What each checkpoint writes after the prompt, and the run's loss, with the checkpoints marked on it.

import { unpack } from "../arrays.js";
import { count, element } from "../charts.js";

const HEIGHT = 260, LEFT = 44, RIGHT = 12, TOP = 12, BOTTOM = 22;

export function render(section, page, state) {
  const { train, val } = page.checkpoints.at(-1).views.over_time;
  const curves = [["training", points(train), "line"], ["held-out", points(val), "dots"]].filter(([, { length }]) => length);
  const chart = curves.length ? lossChart(curves, section.clientWidth, page, state) : "";
  const buttons = page.checkpoints.map(({ step }, index) => element("button", {
    type: "button", onclick: () => state.set({ checkpoint: index }),
  }, step === null ? "sample" : `step ${count(step)}`));
  section.append(chart, element("ol", { class: "samples" }, ...page.checkpoints.map(({ views }, index) =>
    element("li", {}, buttons[index],
      element("p", { dir: "auto" }, views.over_time.sample.replace(/^\n+|\n+$/g, ""))))));
  state.subscribe(["checkpoint"], () => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", `${index === state.checkpoint}`));
  });
}

// [step, loss] of a curve; step 0 has no place on a logarithmic axis.
function points({ steps, losses }) {
  return Array.from(unpack(steps).values, (step, index) => [step, unpack(losses).values[index]]).filter(([step]) => step > 0);
}

function lossChart(curves, width, page, state) {
  const all = curves.flatMap(([, curve]) => curve), steps = all.map(([step]) => step), losses = all.map(([, loss]) => loss);
  const marked = page.checkpoints.map(({ step }) => step);
  const first = Math.min(...steps, ...marked), last = Math.max(...steps, ...marked, first + 1);
  const low = Math.floor(Math.min(...losses)), high = Math.max(Math.ceil(Math.max(...losses)), low + 1);
  const x = (step) => LEFT + (width - LEFT - RIGHT) * Math.log(step / first) / Math.log(last / first);
  const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low);

  const grid = Array.from({ length: high - low + 1 }, (_, index) => low + index).flatMap((loss) => [
    element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss) }),
    element("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, `${loss}`)]);
  const ticks = [];
  for (let step = 1; step <= last; step *= 10) if (step >= first) ticks.push(step);
  const labels = ticks.map((step) => element("text", { x: x(step), y: HEIGHT - 4, "text-anchor": "middle" }, count(step)));
  const drawn = curves.map(([name, curve, kind]) => (kind === "line"
    ? element("polyline", { class: "curve", points: curve.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" ") })
    : element("g", { class: "dots" }, ...curve.map(([step, loss]) =>
      element("circle", { cx: x(step), cy: y(loss), r: 4 }, element("title", {}, `${name} loss ${loss.toFixed(4)} at step ${count(step)}`))))));
  const marks = marked.map((step, index) => element("g", { class: "mark", onclick: () => state.set({ checkpoint: index }) },
    element("rect", { x: x(step) - 8, y: TOP, width: 16, height: HEIGHT - TOP - BOTTOM }),
    element("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }),
    element("title", {}, `checkpoint of step ${count(step)}`)));
  state.subscribe(["checkpoint"], () => {
    marks.forEach((mark, index) => mark.classList.toggle("chosen", index === state.checkpoint));
  });
  const [name, curve] = curves[0], [, start] = curve[0], [step, end] = curve.at(-1);
  return element("figure", {},
    element("svg", { class: "loss", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
      "aria-label": `The ${name} loss goes from ${start.toFixed(2)} to ${end.toFixed(2)} nats at step ${count(step)}` },
    ...grid, ...labels, ...marks, ...drawn),
    element("figcaption", {}, "Loss in nats by step, on a logarithmic axis. Line: training batches. Dots: held-out text. Dashes: checkpoints."));
}
