// The page: choose a picture, ask the server, show the answer. Drawing is in picture.js.
import { $, MIB, UNREACHABLE, alertError, alertText, present, refusal, say, tag, takeDropped } from "./common.js";
import { coverage, draw, maskOf, readMap, readPicture } from "./picture.js";

const state = { model: null, blob: null, picture: null, map: null, request: null };

// ------------------------------------------------------------------------------------------------ the server

async function ask(output, more = {}, signal = undefined) {
  const form = new FormData();
  form.append("file", state.blob, "picture");
  form.append("output", output);
  for (const [name, value] of Object.entries(more)) if (value !== null && value !== "") form.append(name, value);
  const answer = await fetch("v1/predict", { method: "POST", body: form, signal });
  if (answer.ok) return answer;
  throw await refusal(answer);
}

async function show(blob) {
  state.request?.abort();
  const request = (state.request = new AbortController());
  Object.assign(state, { blob, picture: null, map: null });
  alertText("");
  if (blob.size > state.model.limits.max_bytes) {
    fail(new Error(`This picture has ${(blob.size / MIB).toFixed(1)} MiB; the server takes up to ${(state.model.limits.max_bytes / MIB).toFixed(0)} MiB.`));
    return;
  }
  busy(true);
  say("Working …");
  try {
    const reading = readPicture(blob, state.model.input.exif_rotation === "apply");
    const asked = byLabels() ? ["mask"] : ["map", { label: $("class").value }];
    const answer = await ask(...asked, request.signal);
    const map = await readMap(await answer.blob(), byLabels());
    const picture = await reading;
    if (request !== state.request) return;
    Object.assign(state, { map, picture });
    state.notes = [answer.headers.get("segship-notes"), picture ? "" : "this browser cannot show the picture itself"];
    state.times = times(answer.headers.get("server-timing") ?? "");
    $("drop").hidden = true;
    $("shown").hidden = $("controls").hidden = false;
    redraw();
  } catch (error) {
    if (request === state.request && error.name !== "AbortError") fail(error);
  } finally {
    if (request === state.request) busy(false);
  }
}

function times(header) {
  const found = Object.fromEntries([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map((m) => [m[1], Number(m[2])]));
  return "work" in found ? `${Math.round(found.work)} ms on the server` : "";
}

async function download(button) {
  busy(true);
  try {
    const output = button.dataset.output;
    const answer = await ask(output, { threshold: chosenThreshold() });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${(state.blob.name ?? "picture").replace(/\.[^.]*$/, "")}_${output}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    fail(error);
  } finally {
    busy(false);
  }
}

// ------------------------------------------------------------------------------------------------ what is shown

const rule = () => state.model.decode.decision.rule;
const byLabels = () => rule() === "argmax" || rule() === "regions";
const ground = () => state.model.outputs.includes("cutout"); // 0 is a background; of a street's classes none is
const classes = () => state.model.labels.filter((label) => label.id !== 0 || !ground());
const soft = () => rule() === "saliency" && $("soft").checked;
const chosenThreshold = () => (byLabels() || soft() ? null : Number($("threshold").value) / 100);

let planned = false;
function redraw() {
  if (planned || !state.map) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    paint();
  });
}

function paint() {
  const { map, picture } = state;
  const view = document.querySelector("input[name=view]:checked").value;
  const mask = byLabels() ? map.values.map((id) => (id || !ground() ? 255 : 0)) : maskOf(map, chosenThreshold());
  const colors = new Map(state.model.labels.map((label) => [label.id, label.color]));
  const one = colors.get(Number($("class").value)) ?? [11, 110, 99];
  const fits = picture && picture.width === map.width && picture.height === map.height;
  draw($("canvas"), {
    picture: fits ? picture.pixels : null, width: map.width, height: map.height, mask, view, edges: !soft(),
    opacity: Number($("opacity").value) / 100, flat: byLabels(), colorOf: byLabels() ? (i) => colors.get(map.values[i]) ?? one : () => one,
  });
  fitCanvas();
  $("opacityText").value = `${$("opacity").value} %`;
  $("thresholdText").value = soft() ? "–" : (Number($("threshold").value) / 100).toFixed(2);
  $("threshold").disabled = soft() || view === "picture";
  $("opacity").disabled = view !== "overlay";
  const found = byLabels() ? shares(map.values) : [];
  legend(found);
  const percent = coverage(mask).toFixed(1);
  const covered = byLabels() && !ground() ? `${found.length} classes` : `mask covers ${percent} %`;
  const told = found.slice(0, 3).map(([label, share]) => `${label.name} ${(100 * share).toFixed(1)} percent`).join(", ");
  $("canvas").setAttribute("aria-label", `${view} of the picture; ${told || `the mask covers ${percent} percent`}`);
  const notes = [`${map.fullWidth} × ${map.fullHeight} pixels`, covered, state.times, ...state.notes];
  say(notes.filter(Boolean).join(" · "));
}

/** [label, share of the picture] of every class that is there, largest first. */
function shares(values) {
  const counts = new Map();
  for (const id of values) counts.set(id, (counts.get(id) ?? 0) + 1);
  const found = classes().filter((label) => counts.has(label.id)).map((label) => [label, counts.get(label.id) / values.length]);
  return found.sort((a, b) => b[1] - a[1]);
}

function legend(found) {
  $("legend").hidden = !found.length;
  const row = ([label, share]) => {
    const line = document.createElement("li");
    const chip = document.createElement("i");
    chip.style.background = `rgb(${label.color.join(",")})`;
    line.append(chip, tag("span", label.name), tag("b", share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`));
    return line;
  };
  $("found").replaceChildren(...found.map(row));
}

function fitCanvas() {
  const canvas = $("canvas");
  const room = canvas.parentElement.clientWidth;
  const tall = window.innerHeight * (room < 500 ? 0.55 : 0.75);
  const scale = Math.min(room / canvas.width, tall / canvas.height, 8);
  canvas.style.width = `${Math.round(canvas.width * scale)}px`;
  canvas.classList.toggle("pixels", scale >= 3);
}

function fail(error) {
  if (!state.map) {
    $("drop").hidden = false;
    $("shown").hidden = $("controls").hidden = $("legend").hidden = true;
  }
  say("");
  alertError(error);
}

function busy(on) {
  $("stage").setAttribute("aria-busy", String(on));
  for (const button of document.querySelectorAll("#downloads button")) button.disabled = on;
}

// ------------------------------------------------------------------------------------------------ the network

/** Whether the page has a use for an output: label files are for packages of one class a pixel, ids where they differ. */
function offered(output) {
  const { labels, outputs } = state.model;
  const own = labels.some((label) => label.file_value !== null && label.file_value !== label.id);
  if (["ids", "color", "cityscapes"].includes(output) && !byLabels()) return false;
  return outputs.includes(output) && (output !== "ids" || own);
}

function setUp(model) {
  state.model = model;
  present(model, [["Input", model.network_size ? model.network_size.join(" × ") : "any size"]], classes(), "not measured");
  $("limits").textContent = `up to ${Math.round(model.limits.max_bytes / MIB)} MiB and ${Math.round(model.limits.max_pixels / 1e6)} megapixels`;
  $("class").replaceChildren(...classes().map((label) => new Option(label.name, label.id)));
  $("classRow").hidden = byLabels() || classes().length < 2;
  $("thresholdRow").hidden = byLabels();
  for (const control of document.querySelectorAll("#downloads button, input[name=view][value=cutout]"))
    (control.closest("label") ?? control).hidden = !offered(control.dataset.output ?? control.value);
  if (byLabels()) {
    $("maskView").textContent = "Classes";
    document.querySelector("[data-output=mask]").textContent = "Labels";
  }
  const given = model.decode.decision.threshold ?? null;
  $("softRow").hidden = rule() !== "saliency";
  $("soft").checked = rule() === "saliency";
  $("threshold").value = 100 * (given ?? 0.5);
}

// ------------------------------------------------------------------------------------------------ hands

function take(files) {
  const file = [...(files ?? [])][0];
  if (file) show(file);
}

function connect() {
  $("choose").addEventListener("click", () => $("file").click());
  $("another").addEventListener("click", () => $("file").click());
  $("camera").addEventListener("click", () => $("photo").click());
  $("camera").hidden = !matchMedia("(pointer: coarse)").matches;
  for (const input of [$("file"), $("photo")])
    input.addEventListener("change", () => {
      take(input.files);
      input.value = "";
    });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files));
  takeDropped(take);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("input", (event) => (event.target.id === "class" ? show(state.blob) : redraw()));
  for (const button of document.querySelectorAll("#downloads button"))
    button.addEventListener("click", () => download(button));
  window.addEventListener("resize", () => state.map && fitCanvas());
}

try {
  const answer = await fetch("v1/model");
  setUp(await answer.json());
  connect();
} catch {
  alertText(UNREACHABLE);
}
